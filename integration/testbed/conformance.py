"""What `make conformance` does with data.

policy BASE LINES…: a policy with further lines, where several have a key by the last one's word.
compare DOCUMENT NAME=REPORT NAME=REPORT [NAME=REPORT]: a table of the reports of critest, runc's, Bulkhead's and perhaps that of gVisor's
own shim; then each failure of Bulkhead with the document's reason. Fails when what fails for the first two is not what the document
lists.
"""

import collections
import json
import re
import sys
import tomllib

# Which of the reports a part of the document is about, by its heading.
RUNC, BULKHEAD = range(2)
PARTS = {
    "## What fails for runc as well": {RUNC, BULKHEAD},
    "## What gVisor does not have, or not without the host": {BULKHEAD},
}


def merged(base, lines):
    for key, value in lines.items():
        tables = isinstance(value, dict) and isinstance(base.get(key), dict)
        base[key] = merged(base[key], value) if tables else value
    return base


def flat(table, *path):
    """A line for each value; JSON's values, as far as a policy has them, are TOML's."""
    for key, value in table.items():
        if isinstance(value, dict):
            yield from flat(value, *path, key)
        else:
            yield f"{'.'.join(json.dumps(each) for each in (*path, key))} = {json.dumps(value)}"


def policy(*names):
    whole = {}
    for name in names:
        with open(name, "rb") as file:
            whole = merged(whole, tomllib.load(file))
    print("\n".join(flat(whole)))


def counted(document):
    """What the document's first table says of each: how many ran, passed and failed."""
    with open(document) as file:
        return re.findall(r"^\| [^|]+ (\| \d+ \| \d+ \| \d+ \|)$", file.read(), re.MULTILINE)


def listed(document):
    """The rows of the document's tables whose first cell is a spec, by its words: the reason, and in which reports it fails."""
    rows, heading = {}, ""
    with open(document) as file:
        for line in file:
            heading = line.strip() if line.startswith("## ") else heading
            if row := re.match(r"\| `([^`]+)` \| (.+) \|$", line):
                rows[row[1]] = (row[2], PARTS[heading])
    return rows


def specs(report):
    """Each spec's name, state and message."""
    with open(report) as file:
        for suite in json.load(file):
            # The others are the suite's own set-up; when that fails no spec is run.
            for spec in (spec for spec in suite["SpecReports"] if spec["LeafNodeType"] == "It"):
                name = " ".join([*spec["ContainerHierarchyTexts"], spec["LeafNodeText"]])
                yield name, spec["State"], spec.get("Failure", {}).get("Message", "")


def compare(document, runc, bulkhead, *beside):
    rows, counts, wrong = listed(document), counted(document), []
    print("\n| | ran | passed | failed |\n|---|---|---|---|")
    failures = []
    for index, report in enumerate((runc, bulkhead, *beside)):
        title, _, file = report.partition("=")
        results = list(specs(file))
        ran = {name: (state, text) for name, state, text in results if state not in ("skipped", "pending")}
        failed = {name: text for name, (state, text) in ran.items() if state != "passed"}
        failures.append(failed)
        figures = f"| {len(ran)} | {len(ran) - len(failed)} | {len(failed)} |"
        print(f"| {title} {figures}")
        if report in beside:
            continue
        # A spec that is skipped neither fails nor passes.
        if [figures] != counts[index : index + 1]:
            wrong.append(f"{title}: {figures} ran, passed, failed; the document has {counts[index : index + 1]}")
        expected = {}
        for words, (reason, where) in rows.items():
            names = [name for name in ran if name.endswith(" " + words)]
            if len(names) != 1:
                wrong.append(f"{title}: the words of {len(names)} specs that ran: {words}")
            elif index in where:
                expected[names[0]] = f"{words}: {reason}"
        for name in failed.keys() - expected.keys():
            # After its first lines a message shows the inside of a Go structure.
            text = "\n    ".join(failed[name].strip().split("\n")[:4])
            wrong.append(f"{title} fails, and it is not listed: {name}\n    {text}")
        wrong += [f"{title} passes, though it is listed: {name}" for name in expected.keys() - failed.keys()]
        if index == BULKHEAD:
            listing = [(name, expected[name]) for name in failed if name in expected]
            skipped = collections.Counter(text or "left out by critest" for _, state, text in results if state == "skipped")
    print(f"\n{sum(skipped.values())} specs did not run for Bulkhead:")
    print("\n".join(f"  {count} {text}" for text, count in skipped.most_common()))
    # Without a report beside, the last one is Bulkhead's own.
    print("\nBulkhead fails:")
    for name, reason in listing:
        also = "" if name in failures[-1] else " (gVisor's own shim passes)"
        print(f"  {reason}{also}")
    for name in failures[-1].keys() - failures[BULKHEAD].keys():
        print(f"gVisor's own shim fails, Bulkhead does not: {name}")
    if wrong:
        sys.exit("\nNot as listed in docs/kubernetes-conformance.md:\n" + "\n".join(f"  {line}" for line in wrong))
    print("\nAs listed in docs/kubernetes-conformance.md.")


if __name__ == "__main__":
    {"policy": policy, "compare": compare}[sys.argv[1]](*sys.argv[2:])
