"""What consumers of CDI that are in use make of a specification that is right, where that is not what it says."""

from __future__ import annotations

from nvoci.cdi import version
from nvoci.errors import printable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from nvoci.cdi.model import Spec

OLD = "0.5.0"
"""The newest version that Podman 4 reads; a newer specification it passes over without a word."""


def warnings(spec: Spec) -> list[str]:
    """What ends them: the CDI project's library before 1.1 looks behind the end of a name of one character.

    >>> from nvoci.cdi.model import Spec
    >>> warnings(Spec("0.5.0", "a/gpu"))
    ['vendor `a` is of one character: engines with an older CDI library, such as Podman 4, crash when they read it']
    """
    parts = (("vendor", spec.vendor), ("class", spec.class_))
    short = [f"{what} `{printable(name)}`" for what, name in parts if len(name) == 1]
    if not short:
        return []
    are = "is" if len(short) == 1 else "are each"
    told = "engines with an older CDI library, such as Podman 4, crash when they read it"
    return [f"{' and '.join(short)} {are} of one character: {told}"]


def passed_over(spec: Spec) -> bool:
    """Whether it is newer than OLD.

    >>> from nvoci.cdi.model import Spec
    >>> passed_over(Spec("0.6.0", "a.org/b")), passed_over(Spec("v0.5.0", "a.org/b"))
    (True, False)
    """
    return version.parse(spec.cdi_version) > version.parse(OLD)
