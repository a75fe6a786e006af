#!/usr/bin/env python3
"""bill.py FIRST OTHER…: one CycloneDX bill of what several programs are made of. The first program is the subject; the others are
components of it like everything else."""

import json
import sys


def main(paths):
    bills = []
    for path in paths:
        with open(path, encoding="utf-8") as file:
            bills.append(json.load(file))
    whole, *others = bills
    components = {part["bom-ref"]: part for part in whole.get("components", [])}
    dependencies = {entry["ref"]: entry for entry in whole.get("dependencies", [])}
    for other in others:
        subject = other["metadata"]["component"]
        for part in [subject, *other.get("components", [])]:
            components.setdefault(part["bom-ref"], part)
        for entry in other.get("dependencies", []):
            known = dependencies.setdefault(entry["ref"], {"ref": entry["ref"]})
            on = sorted({*known.get("dependsOn", []), *entry.get("dependsOn", [])})
            if on:
                known["dependsOn"] = on
    whole["components"] = [components[ref] for ref in sorted(components)]
    whole["dependencies"] = [dependencies[ref] for ref in sorted(dependencies)]
    json.dump(whole, sys.stdout, indent=2)
    print()


if __name__ == "__main__":
    main(sys.argv[1:])
