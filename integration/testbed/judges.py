"""What `make judges` does with data.

compare DOCUMENT RUNC BULKHEAD: counts the outcomes of both, and holds what passes on runc and not on Bulkhead to the document's tables, by
name and both ways. Cases that were not run are not looked at.
"""

import collections
import re
import sys

OUTCOMES = ("passed", "skipped", "failed", "hung")
JUDGES = ("stress-ng", "cpython")


def outcomes(name):
    """How each case ended, by judge and name."""
    with open(name) as file:
        rows = (re.fullmatch(r"(\S+) (\S+) (\w+)\s*", line) for line in file)
        return {(row[1], row[2]): row[3] for row in rows if row and row[1] in JUDGES and row[3] in OUTCOMES}


def listed(document):
    """The rows whose first two cells are a judge and a name."""
    with open(document) as file:
        rows = (re.match(r"\| ([\w-]+) \| `([^`]+)` \| (.+) \|$", line) for line in file)
        return {(row[1], row[2]): row[3] for row in rows if row}


def compare(document, runc, bulkhead):
    reasons, by_runc, by_bulkhead = listed(document), outcomes(runc), outcomes(bulkhead)
    print("\n| judge | runtime | " + " | ".join(OUTCOMES) + " |\n|---|---|" + "---|" * len(OUTCOMES))
    for judge in JUDGES:
        for name, results in (("runc", by_runc), ("Bulkhead", by_bulkhead)):
            counts = collections.Counter(outcome for (of, _), outcome in results.items() if of == judge)
            print(f"| {judge} | {name} | " + " | ".join(str(counts[outcome]) for outcome in OUTCOMES) + " |")
    wrong, both = [], sorted(by_runc.keys() & by_bulkhead.keys())
    for case in sorted(by_runc.keys() ^ by_bulkhead.keys()):
        wrong.append(f"{' '.join(case)} ran on one of the two alone")
    print("\nPassed on runc, and not on Bulkhead:")
    for case in both:
        differs = by_runc[case] == "passed" and by_bulkhead[case] != "passed"
        if differs:
            print(f"  {' '.join(case)} {by_bulkhead[case]}: {reasons.get(case, 'NOT LISTED')}")
        if differs and case not in reasons:
            wrong.append(f"{' '.join(case)} passes on runc and is {by_bulkhead[case]} on Bulkhead, and {document} does not list it")
        # One that runc itself did not pass this time says nothing.
        if case in reasons and by_bulkhead[case] == "passed":
            wrong.append(f"{' '.join(case)} passes on Bulkhead, and {document} lists it")
    if not both:
        wrong.append("nothing was run on both")
    for line in wrong:
        print(line, file=sys.stderr)
    print(f"{len(both)} cases on both: " + ("as listed in docs/compatibility.md" if not wrong else f"{len(wrong)} not as listed"))
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    if sys.argv[1:2] == ["compare"] and len(sys.argv) == 5:
        compare(*sys.argv[2:])
    else:
        sys.exit(__doc__)
