"""What `make outside` does with data.

left-out DOCUMENT SUITE RUNTIME: a regular expression of the cases that the document leaves out.
table RESULTS SUITE: the rows of the document as the reports have it, without reasons.
compare DOCUMENT RESULTS SUITES: how each case ended, against the document's row. Fails, by name, for a case that ended otherwise, for
one that has no row, and for a row whose case did not run.
"""

import collections
import re
import sys

RUNTIMES = ("runc", "bulkhead")
TITLES = {"client": "## By containerd's client", "cri": "## By the CRI plugin"}
WORDS = {"PASS": "passes", "FAIL": "fails", "SKIP": "skips itself"}
LEFT_OUT = "left out"
# A case that is not told to have ended: the whole program ended first, or it was not there.
MISSING = "did not end"


def rows(document, suite):
    """The document's rows of a suite: how a case ends on runc, how on Bulkhead, and why."""
    found, heading = {}, ""
    with open(document) as file:
        for line in file:
            heading = line.strip() if line.startswith("## ") else heading
            row = re.match(r"\| `(\w+)` \| ([^|]+) \| ([^|]+) \|(.*)\|$", line)
            if row and heading == TITLES[suite]:
                if row[1] in found:
                    sys.exit(f"{document}: {row[1]} has two rows")
                found[row[1]] = (row[2], row[3], row[4].strip())
    return found


def left_out(document, suite, runtime):
    index = RUNTIMES.index(runtime)
    names = [name for name, row in rows(document, suite).items() if row[index] == LEFT_OUT]
    # An empty expression would match every case.
    print(f"^({'|'.join([*names, 'None'])})$")


def ended(results, suite, runtime):
    """How each case ended, by its name. What a case prints may stand before it on its line; parts of a case have a slash."""
    found = {}
    with open(f"{results}/{suite}-{runtime}.txt", errors="replace") as file:
        for line in file:
            for name in re.findall(r"^=== RUN +(\w+)$", line):
                found.setdefault(name, MISSING)
            for word, name in re.findall(r"--- (PASS|FAIL|SKIP): (\w+) \(", line):
                found[name] = WORDS[word]
    return found


def table(results, suite):
    reports = [ended(results, suite, runtime) for runtime in RUNTIMES]
    for name in dict.fromkeys(name for report in reports for name in report):
        cells = [report.get(name, MISSING) for report in reports]
        print(f"| `{name}` | {cells[0]} | {cells[1]} | |")


def compare(document, results, suites):
    wrong = []
    print("\n| | ran | passed | failed | skipped themselves |\n|---|---|---|---|---|")
    for suite in suites.split():
        expected = rows(document, suite)
        for index, runtime in enumerate(RUNTIMES):
            report = ended(results, suite, runtime)
            counts = collections.Counter(report.values())
            print(f"| {suite}, {runtime} | {len(report)} | {counts['passes']} | {counts['fails']} | {counts['skips itself']} |")
            for name, row in expected.items():
                is_left_out = row[index] == LEFT_OUT
                if is_left_out != (name not in report):
                    wrong.append(f"{suite}, {runtime}: {name} {'ran, and' if is_left_out else 'did not run, and'} the row says: {row[index]}")
                elif not is_left_out and report[name] != row[index]:
                    wrong.append(f"{suite}, {runtime}: {name} {report[name]}, and the row says: {row[index]}")
                if not row[2] and (is_left_out or row[1] != "passes"):
                    wrong.append(f"{document}: {name} has no reason")
            wrong += [f"{suite}, {runtime}: {name} {how}, and it has no row" for name, how in report.items() if name not in expected]
    if wrong:
        sys.exit("\nNot as listed in docs/outside.md:\n" + "\n".join(f"  {line}" for line in dict.fromkeys(wrong)))
    print("\nAs listed in docs/outside.md.")


if __name__ == "__main__":
    {"left-out": left_out, "table": table, "compare": compare}[sys.argv[1]](*sys.argv[2:])
