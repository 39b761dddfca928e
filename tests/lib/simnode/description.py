"""The description of a node: files below one root, and what NVML answers there. A strict loader.

    {"files": [ENTRY…], "nvml": ANSWERS}            nvml may be missing; its form stands in answers.py

    ENTRY   {"path": "/usr/lib", "type": "dir", "mode": "755"}
            {"path": "/lib", "type": "symlink", "target": "usr/lib"}
            {"path": "/dev/nvidia0", "type": "char", "mode": "666", "major": 195, "minor": 0}      block likewise
            {"path": "/run/x", "type": "socket", "mode": "666"}                                    fifo likewise
            {"path": "/etc/x", "type": "file", "mode": "644", "text": "…"}         or "hex": "00ff…" or "elf": ELF
            All but links may have "uid" and "gid" (0 if not).
    ELF     {"class": 64, "machine": "EM_X86_64", "soname": "libx.so.1" or null, "needed": ["libc.so.6"],
             "notes": [{"section": ".note.x", "hex": the bytes of the section, which holds one note}]}

Every directory on the way to an entry stands in the list as well, and is no link: what is written below a root can not
leave it. /.simnode is simnode's own. Of a regular file `build` sets no bits of the mode above 777, and it refuses block
devices and the character devices of memory and disks.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from lib import elfmaker
from lib.simnode import answers
from lib.simnode.document import At, read

NVML_SONAME = "libnvidia-ml.so.1"
DRIVER_NOT_LOADED = 9
MACHINES = {  # e_machine in elf.h's spelling -> elfmaker's name
    "EM_X86_64": "x86_64",
    "EM_386": "i386",
    "EM_AARCH64": "aarch64",
    "EM_ARM": "arm",
    "EM_PPC64": "ppc64le",
    "EM_RISCV": "riscv64",
    "EM_S390": "s390x",
    "EM_MIPS": "mips",
}
_MODE = "[0-7]{3,4}"
_OWN = "/.simnode"
# Goes into C and assembler source; these are the names that compilers and linkers make.
NOTE_SECTION = r"\.note[A-Za-z0-9._-]*"
_BY_TYPE = {
    "dir": ({"mode"}, {"uid", "gid"}),
    "symlink": ({"target"}, set()),
    "file": ({"mode"}, {"uid", "gid", "text", "hex", "elf"}),
    "char": ({"mode", "major", "minor"}, {"uid", "gid"}),
    "block": ({"mode", "major", "minor"}, {"uid", "gid"}),
    "socket": ({"mode"}, {"uid", "gid"}),
    "fifo": ({"mode"}, {"uid", "gid"}),
}


@dataclass(frozen=True)
class ElfNote:
    """One note section: name, owner, type, descriptor."""

    section: str
    raw: bytes

    @property
    def parts(self) -> elfmaker.Note:
        """What elfmaker takes. The owner's name may hold NUL bytes of its own ("Go" is padded so)."""
        namesz, descsz, kind = struct.unpack_from("<III", self.raw)
        start = 12 + namesz + -namesz % 4
        owner = self.raw[12 : 12 + max(namesz - 1, 0)].decode("latin-1")
        return self.section, owner, kind, self.raw[start : start + descsz]


@dataclass(frozen=True)
class ElfFile:
    """bits: 32 or 64; machine: "EM_X86_64"."""

    bits: int
    machine: str
    soname: str | None
    needed: tuple[str, ...]
    notes: tuple[ElfNote, ...] = ()

    def document(self) -> dict[str, Any]:
        """As it stands in a description."""
        out: dict[str, Any] = {"class": self.bits, "machine": self.machine, "soname": self.soname}
        out["needed"] = list(self.needed)
        if self.notes:
            out["notes"] = [{"section": n.section, "hex": n.raw.hex()} for n in self.notes]
        return out


@dataclass(frozen=True)
class Entry:
    """One file. `path` is absolute; `kind` is dir, symlink, file, char, block, socket or fifo."""

    path: str
    kind: str
    mode: int = 0o777
    uid: int | None = None
    gid: int | None = None
    target: str = ""
    major: int = 0
    minor: int = 0
    content: bytes | ElfFile = b""

    def document(self) -> dict[str, Any]:
        """As it stands in a description."""
        out: dict[str, Any] = {"path": self.path, "type": self.kind}
        if self.kind == "symlink":
            return {**out, "target": self.target}
        out["mode"] = f"{self.mode:o}"
        for key in ("uid", "gid"):
            value = getattr(self, key)
            out.update({key: value} if value is not None else {})
        if self.kind in {"char", "block"}:
            out.update(major=self.major, minor=self.minor)
        if self.kind == "file":
            out.update(_content_document(self.content))
        return out

    @property
    def elf(self) -> ElfFile | None:
        """The ELF file it is."""
        return self.content if isinstance(self.content, ElfFile) else None


def _content_document(content: bytes | ElfFile) -> dict[str, Any]:
    if isinstance(content, ElfFile):
        return {"elf": content.document()}
    text = as_text(content)
    return {"hex": content.hex()} if text is None else {"text": text}


def as_text(content: bytes) -> str | None:
    """The text that `content` is: UTF-8 without control characters other than tab and newline. Else None."""
    try:
        text = content.decode()
    except UnicodeDecodeError:
        return None
    return text if all(c in "\t\n" or ord(c) >= 32 for c in text) else None


@dataclass(frozen=True)
class Node:
    """A description that holds together. `files` are in the order of their paths, parents first."""

    files: tuple[Entry, ...]
    nvml: dict[str, Any] | None = field(default=None)

    def entry(self, path: str) -> Entry:
        """The entry with this very path."""
        return next(e for e in self.files if e.path == path)

    def document(self) -> dict[str, Any]:
        """The description."""
        out: dict[str, Any] = {"files": [e.document() for e in self.files]}
        return out if self.nvml is None else {**out, "nvml": self.nvml}

    @property
    def nvml_libraries(self) -> list[Entry]:
        """Every file that is an NVML library by its soname."""
        return [e for e in self.files if e.elf and e.elf.soname == NVML_SONAME]


def load(source: str | Path | dict[str, Any]) -> Node:
    """Read and check a description; DescriptionError says where and what. Node.nvml is {"error": 9} (driver not loaded)
    where there is an NVML library and the document does not say what it answers."""
    top = At(source, "description") if isinstance(source, dict) else read(source)
    members = top.object({"files"}, {"nvml"})
    files = _check_tree(members["files"])
    nvml = answers.check(members["nvml"]) if "nvml" in members else None
    node = Node(files, nvml)
    if not node.nvml_libraries:
        if nvml is not None:
            members["nvml"].fail(f"no file has the soname {NVML_SONAME}: nothing can answer")
        return node
    return node if nvml is not None else Node(files, {"error": DRIVER_NOT_LOADED})


def _check_tree(at: At) -> tuple[Entry, ...]:
    found: dict[str, tuple[Entry, At]] = {}
    for element in at.array():
        entry = _entry(element)
        if entry.path in found:
            element.fail(f"`{entry.path}` stands in {found[entry.path][1].place} already")
        found[entry.path] = (entry, element)
    for entry, element in found.values():
        parent = str(PurePosixPath(entry.path).parent)
        if parent != "/" and parent not in found:
            element.fail(f"the directory of `{entry.path}` is not in the list")
        if parent != "/" and found[parent][0].kind != "dir":
            element.fail(f"`{parent}` is a {found[parent][0].kind}, and `{entry.path}` lies below it")
    return tuple(entry for _, (entry, _) in sorted(found.items()))


def _entry(at: At) -> Entry:
    if not isinstance(at.value, dict) or "type" not in at.value:
        at.object({"path", "type"}, at.value if isinstance(at.value, dict) else ())
    kind = At(at.value["type"], at.document, f"{at.place}.type").choice(_BY_TYPE)
    required, optional = _BY_TYPE[kind]
    members = at.object({"path", "type", *required}, optional)
    path = members["path"].text(4095)
    if not path.startswith("/") or path == "/" or str(PurePosixPath(path)) != path or ".." in path.split("/"):
        members["path"].fail(f"`{path}` is no absolute path in its shortest form")
    if path == _OWN or path.startswith(f"{_OWN}/"):
        members["path"].fail(f"`{_OWN}` and what is below it is simnode's own")
    if any(len(part.encode("utf-8", "surrogateescape")) > 255 for part in path.split("/")):
        members["path"].fail("a name in it is longer than 255 bytes")
    values: dict[str, Any] = {}
    if "mode" in members:
        values["mode"] = int(members["mode"].text(pattern=_MODE), 8)
    if "target" in members:
        values["target"] = members["target"].text(4095, pattern="(?s).+")
    for key, most in (("uid", 0xFFFFFFFE), ("gid", 0xFFFFFFFE), ("major", 0xFFF), ("minor", 0xFFFFF)):
        if key in members:
            values[key] = members[key].number(most)
    if kind == "file":
        values["content"] = _content(at, members)
    return Entry(path, kind, **values)


def _content(at: At, members: dict[str, At]) -> bytes | ElfFile:
    given = [key for key in ("text", "hex", "elf") if key in members]
    if len(given) != 1:
        at.fail("exactly one of `text`, `hex`, `elf` is needed" + (f", not {' and '.join(given)}" if given else ""))
    if given == ["elf"]:
        return _elf(members["elf"])
    if given == ["hex"]:
        return members["hex"].hex()
    return members["text"].text().encode("utf-8", "surrogateescape")


def _elf(at: At) -> ElfFile:
    members = at.object({"class", "machine", "soname", "needed"}, {"notes"})
    soname = None if members["soname"].value is None else members["soname"].text(255, ".+")
    needed = members["needed"].each(lambda each: each.text(255, ".+"), 1024)
    notes = members["notes"].each(_note, 64) if "notes" in members else []
    bits = members["class"].choice((32, 64))
    return ElfFile(bits, members["machine"].choice(MACHINES), soname, tuple(needed), tuple(notes))


def _note(at: At) -> ElfNote:
    members = at.object({"section", "hex"})
    note = ElfNote(members["section"].text(64, NOTE_SECTION), members["hex"].hex())
    if len(note.raw) < 12:
        members["hex"].fail("shorter than the header of a note")
    section, owner, kind, desc = note.parts
    if elfmaker.note_section(owner, kind, desc) != note.raw or not owner.isascii():
        members["hex"].fail("does not hold exactly one note, padded to four bytes")
    return ElfNote(section, note.raw)
