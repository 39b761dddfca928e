"""config.toml: settings or one line, whatever is in it; the compiled form says the same."""

from __future__ import annotations

from fuzz.registry import Target, register

from nvoci.errors import HookError
from nvoci.jsonfile import dumps, loads
from nvoci.prestart.compile import KEYS, parse
from nvoci.prestart.config import Config, document

PATH = "/etc/nvidia-container-runtime/config.toml"
TOKENS = (
    *[key.rpartition(".")[2].encode() + b" = " for key in KEYS], b"[nvidia-container-cli]\n", b"[features]\n",
    b"[nvidia-container-runtime.modes.cdi]\n", b"[nvidia-container-runtime]\n", b"true", b"false", b'"', b"'", b'"""',
    b"[", b"]", b"[[", b"{", b"}", b".", b"\n", b"\r\n", b"#", b"\\u0000", b"\\n", b"1", b"1.5", b"nan", b"1979-05-27",
    b"\xff", b"@/", b'["a", "b"]', b"all", b"=", b"_", b"-",
)  # fmt: skip


def _seeds() -> list[bytes]:
    return [
        b"",
        b"disable-require = false\nsupported-driver-capabilities = \"compute,utility\"\nswarm-resource = 'A'\n",
        b'[nvidia-container-cli]\nenvironment = ["A=b"]\nldconfig = "@/sbin/ldconfig.real"\nload-kmods = true\n',
        b'[nvidia-container-runtime]\nruntimes = ["runc"]\n[nvidia-container-runtime.modes.cdi]\nspec-dirs = ["/x"]\n',
        b"features.ignore-imex-channel-requests = true\nnvidia-container-cli = {root = '/x', no-cgroups = true}\n",
        b"[nvidia-container-runtime.modes.legacy]\ncuda-compat-mode = '''mount'''\n[other]\nx = 1\n[[y]]\n[[y]]\n",
        b"a = 1979-05-27T07:32:00Z\nb = [1, [2.5, nan]]\nc = {d = {e = 'f'}}\n",
        b"nvidia-container-cli = 3\n",
        b"[nvidia-container-cli]\nldconfig = '/sbin/ldconfig'\nroot = 'x'\n",
    ]


def _parse(data: bytes) -> Config:
    return parse(data, PATH)


def _one_line(error: Exception) -> bool:
    line = error.line() if isinstance(error, HookError) else ""
    return line.startswith(f"read configuration {PATH}: ") and line.isprintable() and len(line) < 4000


def _check(data: bytes, case: bytes, config: Config) -> None:
    """Through the compiled form and back it is the same; what follows from it can be told."""
    again = loads(dumps(document(config, [PATH, 1, 2, 3, 4, 5])).encode())
    assert Config.from_json(again["set"]) == config
    assert not config.ldconfig or config.ldconfig.startswith("@/") or config.allow_ldconfig_from_container
    assert config.driver_root.startswith("/")
    assert config.compat_mode in {"mount", "ldconfig", "disabled"}
    assert sorted(config.allowed_capabilities) == list(config.allowed_capabilities)
    assert all(name not in KEYS or "." in name for name in config.unknown)


register(
    Target(  # both readers are plain Python, and slow with a long dotted name: it is the administrator's own file
        "config.toml", parse=_parse, errors=(HookError,), allowed=_one_line, check=_check, seeds=_seeds, tokens=TOKENS,
        max_size=1 << 11, executions=4000, seconds=0.1,
    )
)  # fmt: skip
