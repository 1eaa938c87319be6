"""Where an instruction came from: the debug lines of PTX, followed out of what was inlined.

PTX ISA, "Debugging Directives: .file, .loc".
"""

from __future__ import annotations

import re

FILE = re.compile(r"\.file\s+(\d+)\s+(?:\"[^\"]*\"\s+)?\"([^\"]*)\"")
LOCATION = re.compile(
    r"\.loc[ \t]+(\d+)[ \t]+(\d+)[ \t]+(\d+)"
    r"(?:[^\n]*inlined_at[ \t]+(\d+)[ \t]+(\d+)[ \t]+(\d+))?[^\n]*"
)
PLACE = re.compile(r"([\w.+-]+):(\d+):\d+")  # in the comments that Triton puts behind .loc
INLINE_ASM = re.compile(r"// begin inline asm.*?// end inline asm", re.S)


def name_locations(ptx: str) -> str:
    """Every `.loc` as `.loc "gemv.py:108"`: the outermost place where its code was inlined.

    A place is inlined at another, which an earlier `.loc` may have inlined in turn; Triton 3.6 says
    the same in comments. Within inline assembly LLVM counts a source line for every line of
    assembly; those go.
    """
    files = {number: path.rsplit("/", 1)[-1] for number, path in FILE.findall(ptx)}
    inlined: dict[tuple[str, ...], tuple[str, ...]] = {}

    def name(match: re.Match[str]) -> str:
        place, parent = match.groups()[:3], match.groups()[3:]
        if parent[0] is not None and parent != place:
            inlined[place] = parent
        else:
            inlined.pop(place, None)
        seen = set()
        while place in inlined and place not in seen:
            seen.add(place)
            place = inlined[place]
        file, line = files.get(place[0], f"file {place[0]}"), place[1]
        chain = PLACE.findall(match[0])
        if len(chain) > 1 or (chain and place[0] not in files):
            file, line = chain[-1]
        return f'.loc "{file}:{line}"' if line != "0" else ""

    without = INLINE_ASM.sub(lambda match: LOCATION.sub("", match[0]), ptx)
    return LOCATION.sub(name, without)
