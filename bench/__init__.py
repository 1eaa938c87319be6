"""How it is measured, and what it means. One file per command; `measure` fills a profile, `analysis` reads it.

    problem -> kernel launch -> verify -> timing -> samples -> PROFILE -> stats -> decompose -> report

Left of the profile a device is needed; right of it only the file. This file must exist: without it another
installed package named `bench` would win over this folder.
"""
