"""Hostile images for real containers: what each is, which hooks meet it, and how the start has to end.

A shape is laid over the image of `arena.make` and a static busybox. It stays away from what the runtime itself mounts
on, so that whatever happens is the hook's doing.
"""

from __future__ import annotations

from dataclasses import dataclass

from security.arena import COMPAT, LDCACHE, LIBDIR

CONF_D = "etc/ld.so.conf.d"
LINK = ["create-symlinks", "--link", f"libcuda.so.1::/{LIBDIR}/libcuda.so"]
MADE = ["create-symlinks", "--link", "x::/opt/nvidia/a/b/x"]
CHMOD = ["chmod", "--mode", "755", "--path", "/usr/share/nvidia/file"]
COMPATIBLE = ["enable-cuda-compat", "--host-driver-version", "550.54.15"]
UPDATE, HOSTS = LDCACHE["builtin"], LDCACHE["ldconfig"]
ALL = ["run", "--", *LINK, "--", *MADE, "--", *CHMOD, "--", *COMPATIBLE, "--", *UPDATE]

OWN = (f"{CONF_D}/00-compat-nvoci.conf", f"{CONF_D}/00-nvcr-nvoci.conf", f"{CONF_D}/zz-nvcr-nvoci.conf")
CACHE = ("etc/ld.so.cache", *OWN, f"{LIBDIR}/libfoo.so.1")
PLAN = ("opt/**", f"{LIBDIR}/libcuda.so", "usr/share/nvidia/file", f"{COMPAT}/libcuda.so.1", *CACHE)
"""What ALL may change in an image that is not hostile."""


@dataclass(frozen=True)
class Shape:
    """spec: for `rootfs.tree`; {c} is the canary, without its first slash. words: of the hook. ok: whether the
    container starts (None: either). plan: what may change. says: words of the error, where the runtime shows it."""

    id: str
    spec: str
    words: list[str]
    ok: bool | None = True
    plan: tuple[str, ...] = ()
    says: tuple[str, ...] = ()


UP = "../" * 25
GONE = ("ENOTDIR",)
LOOP = ("ELOOP",)


def _parents() -> list[Shape]:
    """A1 to A4: a directory on the way is a link that leads to the host."""
    texts = {
        "A1": "/{c}",
        "A2": UP + "{c}",
        "A3": "/proc/1/root/{c}",
        "A4-root": "/proc/self/root/{c}",
        "A4-cwd": "/proc/self/cwd",
        "A4-fd": "/proc/self/fd/3",
        "A4-thread": "/proc/thread-self/root/{c}",
    }
    found = []
    for row, text in texts.items():
        # The procfs is that of the container: a hook of the host is not in it, and has no `self` there.
        why = {"A1": GONE, "A2": GONE, "A3": LOOP}.get(row, ())
        found += [
            Shape(f"{row}-link-parent", f"symlink {LIBDIR} {text}", LINK, False, says=why),
            Shape(f"{row}-chmod-parent", f"symlink usr/share/nvidia {text}", CHMOD, None),
            Shape(f"{row}-conf.d", f"symlink {CONF_D} {text}", COMPATIBLE, False, says=why),
            Shape(f"{row}-cache-etc", f"symlink etc {text}", UPDATE, None),
            Shape(f"{row}-cache-conf.d", f"symlink {CONF_D} {text}", UPDATE, None, CACHE),
            Shape(f"{row}-cache-conf.d-ldconfig", f"symlink {CONF_D} {text}", HOSTS, None, CACHE),
            Shape(f"{row}-compat", f"symlink {COMPAT} {text}", COMPATIBLE, None),
        ]
    return found


def _targets() -> list[Shape]:
    """A7, A17, C: what is in the place of the file itself."""
    kinds = {
        "A7-dangling": "symlink {path} /{c}/new", "A17-dir": "gone {path}\ndir {path}/sub", "C1-fifo": "fifo {path}",
        "C3-zero": "char {path} 1 5", "C4-socket": "socket {path}", "C8-sparse": "sparse {path} 1T",
    }  # fmt: skip
    places = {
        "cache": ("etc/ld.so.cache", UPDATE, CACHE),
        "cache-ldconfig": ("etc/ld.so.cache", HOSTS, CACHE),
        "conf": ("etc/ld.so.conf", UPDATE, CACHE),
        "library": (f"{LIBDIR}/libbar.so.1.0", UPDATE, CACHE),
        "library-ldconfig": (f"{LIBDIR}/libbar.so.1.0", HOSTS, CACHE),
        "compat-library": (f"{COMPAT}/libcuda.so.600.1.2", COMPATIBLE, OWN[:1]),
        "link": (f"{LIBDIR}/libcuda.so", LINK, (f"{LIBDIR}/libcuda.so",)),
    }
    found = []
    for kind, spec in kinds.items():
        for place, (path, words, plan) in places.items():
            replaced = kind[:2] in ("A7", "C8")
            kept = tuple(p for p in plan if p != path or replaced)
            found.append(Shape(f"{kind}-{place}", spec.replace("{path}", path), words, None, kept))
    return found


CHAIN = "\n".join(f"symlink k{n} k{n + 1}" for n in range(45))
SHAPES: tuple[Shape, ...] = (
    *_parents(),
    *_targets(),
    Shape("A5-self", "symlink opt/nvidia nvidia", MADE, False, says=LOOP),
    Shape("A5-two", "symlink opt/nvidia /opt/b\nsymlink opt/b /opt/nvidia", MADE, False, says=LOOP),
    Shape("A5-deep", f"{CHAIN}\nsymlink opt/nvidia /k0", MADE, False, says=LOOP),
    Shape("A6-dangling-parent", "symlink opt/nvidia /nowhere/at/all", MADE, None, ("nowhere/**", ".")),
    Shape("A8-usr-is-root", "symlink opt/nvidia /usr\nsymlink usr/a .", MADE, True, ("usr/b/**",)),
    Shape("A17-file-for-a-directory", "file opt/nvidia x", MADE, False, says=("ENOTDIR",)),
    Shape("E1-no-cache-no-conf", "gone etc/ld.so.cache\ngone etc/ld.so.conf\ngone etc/ld.so.conf.d", UPDATE, True,
          (*CACHE, CONF_D, "etc/ld.so.conf")),
    Shape("E2-no-cache", "gone etc/ld.so.cache", ALL, True, PLAN),
    Shape("E4-no-libraries", "gone usr/lib\ngone lib", UPDATE, True, CACHE),
    Shape("E8-library-of-the-same-name", f"file {LIBDIR}/libcuda.so the image's own", LINK, True,
          (f"{LIBDIR}/libcuda.so",)),
    Shape("E9-preload", "file etc/ld.so.preload /x.so\n", ALL, True, PLAN),
    Shape("F1-includes-itself", "file etc/ld.so.conf include /etc/ld.so.conf\n", ALL, True, PLAN),
    Shape("F2-include-in-a-circle", "file etc/ld.so.conf include /etc/c/*\n" +
          "\n".join(f"file etc/c/{n} include /etc/c/*" for n in range(8)), ALL, True, PLAN),
    Shape("F4-line-without-end", "file etc/ld.so.conf " + "x" * 200_000, ALL, None, PLAN),
    Shape("F5-no-elf", f"file {LIBDIR}/libbad.so.1 \\x7fELF\\x02\\x01", ALL, True, PLAN),
    Shape("F6-soname-is-a-path", "elf ../../../../{c}/x", ALL, True, PLAN),
    Shape("F7-cache-is-cut", "file etc/ld.so.cache glibc-ld.so.cache1.1\\xff\\xff\\xff\\x7f", ALL, True, PLAN),
    Shape("good", "", ALL, True, PLAN),
)  # fmt: skip
