"""Where a module that a hook process loads may import inside a function, and why that is before imports are sealed.

A container's root is entered after that, and an import would read what lies there: see `process.seal_imports`.
`module:function` -> (modules, reason). A function that may also run afterwards finds its module loaded already, and
says who has loaded it: an import statement of what is loaded reads no file.
"""

from __future__ import annotations

_OWN_START = "the start of the program: arguments and settings, no container is known yet"
_PREPARE = "`prepare`, on the host, before the state is read"
_LOADED = "after the seal too: loaded by then, by "
_PEOPLE = "a command for people, in a process that enters no container"
_CHOICE = "what the request asks for is chosen on the host, before the container is looked at"

LATE: dict[str, tuple[str, str]] = {
    "hook.main:_print_help": ("nvoci.hook", "help, and then the end"),
    "hook.main:_program": ("nvoci.jsonfile", "--features, and then the end"),
    "hook.main:_run": ("nvoci.hook nvoci.hook.work", _OWN_START),
    "hook.main:prepare": ("(computed)", "the subcommand's own module, from the table, before the state is read"),
    "hook.logs:open_logs": ("nvoci.linux", _OWN_START),
    "hook.logs:add_file": ("nvoci.linux", _OWN_START),
    "hook.grant:load": ("nvoci.linux.cgroup", "called right before the seal, by who will change the cgroup"),
    "hook.work:work_on": ("nvoci.hook.preview nvoci.hook.grant", "above the seal, in the same function"),
    "hook.work:_mount_label": ("nvoci.oci", "in the making of the job, above the seal"),
    "hook.work:_is_as_configured": ("nvoci.oci", "in the making of the job, above the seal"),
    "hook.update_ldcache:prepare": ("nvoci.hook", _PREPARE),
    "hook.update_ldcache:_engine": ("nvoci.hook nvoci.hook.ldconfig", _LOADED + "`prepare`"),
    "hook.mount_mig_devices:Request._check_privileged": ("nvoci.oci.spec", "`steps`, above the seal"),
    "oci.state:_config_root": ("nvoci.oci.config", "the root's path, before the container is entered"),
    "jsonfile:_make_scanner": (
        "_json json",
        "the first document is the settings or the state; `json` only where the private scanner is missing",
    ),
    "jsonfile:dumps": ("json", "what people ask for, and what is stored for a later start"),
    "prestart.main:_run": ("nvoci.prestart", _OWN_START),
    "prestart.main:_load_bundle": ("nvoci_prestart", _OWN_START),
    "prestart.config:load": ("nvoci.prestart", "config.toml, before the container is looked at"),
    "prestart.compile:_toml": ("tomllib", "config.toml, before the container is looked at"),
    "prestart.compile:_with_tomlkit": ("tomlkit", "config.toml, before the container is looked at"),
    "prestart.choose:Chosen.__init__": ("nvoci.prestart", _CHOICE),
    "prestart.plan:Prepared.__init__": ("nvoci.prestart", _CHOICE),
    "prestart.plan:Prepared._take_migs": ("nvoci.hook", _CHOICE),
    "prestart.plan:Prepared._take_management": ("nvoci.hook", _CHOICE),
    "prestart.plan:Prepared._devices": ("nvoci.hook.devices", _LOADED + "`Host.template` and the plan's own imports"),
    "prestart.plan:Prepared._compat": ("nvoci.prestart", _LOADED + "`Prepared`"),
    "prestart.hostfiles:Host.template": ("nvoci.hook", _CHOICE),
    "prestart.node:look": (
        "nvoci.prestart nvoci.discover.look nvoci.discover.node",
        "where the inventory does not hold, on the host",
    ),
    "prestart.node:load_modules": ("nvoci.prestart", "kernel modules, on the host"),
    "prestart.clinode:use": ("nvoci.prestart", "where there is no inventory, on the host"),
    "prestart.cli:main": ("nvoci.prestart", _OWN_START),
    "prestart.cli:_show": ("nvoci.prestart", "help, and then the end"),
    "prestart.cli:_configure": ("nvoci.prestart", _OWN_START),
    "prestart.cli:_leave_out": ("nvoci.prestart", _CHOICE),
    "prestart.clitext:_migs": ("nvoci.hook", _PEOPLE),
    "prestart.clitext:_managing": ("nvoci.hook", _PEOPLE),
}
