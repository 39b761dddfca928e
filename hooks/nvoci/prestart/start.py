"""The start of a container that asks for a GPU: what it asks for, what the node has, and the work.

Whoever has a `Wanted` of its own comes in at `inject`.
"""

from __future__ import annotations

from nvoci import log
from nvoci.errors import OK
from nvoci.hook import enter, logs, process, settings
from nvoci.hook.work import work_on
from nvoci.linux import procfs
from nvoci.oci.state import rootfs_path
from nvoci.prestart import config as configuration
from nvoci.prestart import mode, node, plan, request
from nvoci.prestart.wanted import of_request

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from nvoci.discover.model import Found
    from nvoci.hook.settings import Settings
    from nvoci.oci.spec import Spec
    from nvoci.oci.state import State
    from nvoci.prestart.config import Config
    from nvoci.prestart.configfile import Place
    from nvoci.prestart.main import Words
    from nvoci.prestart.wanted import Wanted


def prestart(state: State, spec: Spec, place: Place, words: Words) -> int:
    """Returns the exit status. Raises HookError."""
    env = process.start()
    current = settings.load()
    logs.open_logs(current)  # first: some runtimes drop stderr
    names = process.dangerous(env)
    if names:
        log.warning("the hook was started with a dangerous environment: give its entry a non-empty `env`",
                    variables=b" ".join(names))  # fmt: skip
    config = configuration.load(place)
    if config.debug and not words.debug:
        logs.add_file(config.debug, log.DEBUG)
    asked = request.build(spec, config)
    if asked is None:
        log.debug("no GPU is asked for")
        return OK
    for what, why in asked.reasons:
        log.info(what, because=why)
    mode.check(config, asked)
    return inject(of_request(asked, config), state, current, dry_run=words.dry_run, check=_checker(config))


def _checker(config: Config) -> Callable[[Found], None]:
    return lambda found: mode.check_node(config, found)


def inject(
    wanted: Wanted, state: State, current: Settings, *, dry_run: bool = False,
    check: Callable[[Found], None] | None = None,
    use: Callable[[Wanted, Callable[[Found], plan.Prepared]], plan.Prepared] = node.use,
) -> int:  # fmt: skip
    """Give a container what is wanted, all or nothing. Returns the exit status. Raises HookError.

    check: is shown what the node has, and may refuse. use: as `node.use`, for who looks at the node in another way."""

    def prepare(found: Found) -> plan.Prepared:
        if check is not None:
            check(found)
        return plan.prepare(found, wanted, current)

    root = rootfs_path(state)
    procfs.handle()
    prepared = use(wanted, prepare)
    return work_on(plan.work_steps(prepared), state, root, enter.locate(state.pid), current, dry_run)
