#!/usr/bin/env python3
"""What the documents name is there: links, headings, keys of the policy, metrics, flags, targets of make, errors, pictures.

papers.py   prints each fault by name, and fails if there is one

A block of a document has a language. `text` is output or a drawing, and `console` is commands with the output that they printed.
The commands of an `sh` block are run by CI (make), are checked here (bulkhead), or the line before the block names what runs them:
<!-- run by TEST -->.
"""

import os
import re
import subprocess
import sys
import tomllib

# Compiled modules would be a change of a clean checkout.
sys.dont_write_bytecode = True
from evidence import REPOSITORY, read, said  # noqa: E402
from promises import behaviours, files, units  # noqa: E402

POLICY = "runsc-config/src/policy/mod.rs"
NODE_TOOL = "shim/tool/src"
LANGUAGES = ("text", "console", "sh", "toml", "yaml", "python", "dockerfile")
# Sections of the policy by the struct of their fields. A NAME stands for any namespace.
SECTIONS = {"Policy": "", "RunscPolicy": "runsc.", "Rootfs": "rootfs.", "Scratch": "scratch.", "CapabilityPolicy": "capabilities.",
            "Limits": "limits.", "Log": "log.", "Binds": "binds.", "Kubernetes": "kubernetes.", "Granted": "kubernetes.namespaces.NAME."}
# Documents whose tables quote errors, by their head, with the column of the words.
QUOTED = [("docs/nerdctl.md", "| asked | words |", 1), ("docs/kubernetes.md", "| the pod has | its event |", 1)]


def papers():
    listed = said("git", "ls-files", "*.md").splitlines()
    return listed or [path for path in files("**/*.md") if not path.startswith("target/")]


def blocks(text):
    """Each fenced block: the line before it, its language, its lines, and the number of its first line."""
    language, before, inside, at = None, "", [], 0
    for number, line in enumerate(text.splitlines(), 1):
        fence = re.match(r" *```(.*)$", line)
        if fence and language is None:
            language, inside, at = fence[1].strip(), [], number
        elif fence:
            yield before, language, inside, at
            language, before = None, ""
        elif language is not None:
            inside.append(line.strip())
        else:
            before = line
    if language is not None:
        yield before, "which does not end", inside, at


def prose(text):
    return re.sub(r"^ *```.*?^ *```", "", text, flags=re.DOTALL | re.MULTILINE)


def anchors(text):
    """The names of headings, as the forges of this world make them."""
    seen = {}
    for heading in re.findall(r"^#+ (.*)$", prose(text), re.MULTILINE):
        name = re.sub(r"[^\w\- ]", "", re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower()).replace(" ", "-")
        count = seen.get(name, 0)
        seen[name] = count + 1
        yield f"{name}-{count}" if count else name


def of_links(paper, text, faults):
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(text)):
        if "://" in target or target.startswith("mailto:"):
            continue
        path, _, heading = target.partition("#")
        place = os.path.normpath(os.path.join(os.path.dirname(paper), path)) if path else paper
        if not os.path.exists(os.path.join(REPOSITORY, place)):
            faults.append(f"{paper}: {target} is linked, and there is no {place}")
        elif heading and heading not in anchors(read(place)):
            faults.append(f"{paper}: {target} is linked, and {place} has no such heading")


def keys():
    """Every key of the policy, from the structs that serde reads it into."""
    text, found = read(POLICY), set()
    for name, prefix in SECTIONS.items():
        body = re.search(rf"^(?:pub )?struct {name} \{{\n(.*?)^\}}", text, re.DOTALL | re.MULTILINE)
        for field, kind in re.findall(r"^    (?:pub(?:\(crate\))? )?(\w+): ([^\n]*),$", body[1] if body else "", re.MULTILINE):
            if kind.strip() not in SECTIONS and "Granted" not in kind and field != "origin":
                found.add(prefix + field)
    return found


def of_keys(paper, text, known, faults):
    sections = {key.split(".")[0] for key in known if "." in key}
    for named in set(re.findall(r"`((?:%s)\.[a-z_.A-Z]+)(?: = [^`]*)?`" % "|".join(sections), text)):
        key = re.sub(r"^kubernetes\.namespaces\.[^.]+", "kubernetes.namespaces.NAME", named)
        is_section = any(one.startswith(key + ".") for one in known)
        if key not in known and not is_section and not key.endswith((".rs", ".toml", ".md", ".sh")):
            faults.append(f"{paper}: `{named}` is named, and the policy has no such key")


def of_policy(known, faults):
    """The table of keys and the code have the same keys."""
    listed = set(re.findall(r"^\| `([\w.]+)` \|", read("docs/policy.md"), re.MULTILINE))
    faults += [f"docs/policy.md: it has no row for {key}" for key in sorted(known - listed)]
    faults += [f"docs/policy.md: {key} has a row, and the policy has no such key" for key in sorted(listed - known)]


def metrics():
    """The names of all series, as the sources have them between quotes, without and with the prefix."""
    text = "".join(read(path) for path in files("shim/src/metrics/*.rs") + files(f"{NODE_TOOL}/**/*.rs"))
    return {name.removeprefix("bulkhead_") for name in re.findall(r'"([a-z][a-z0-9_]+)"', text)}


def of_metrics(paper, text, known, faults):
    units_of = r"(?:_seconds|_bytes|_packets)?"
    for name in set(re.findall(r"\bbulkhead_([a-z][a-z0-9_]+)\b", text)):
        stem = re.sub(r"_(total|bucket|count|sum|info)$", "", name)
        if not any(one in known for one in (name, stem, re.sub(units_of + "$", "", stem))):
            faults.append(f"{paper}: bulkhead_{name} is named, and no such series is in the sources")


def flags():
    """The subcommands of the node tool, with their long flags."""
    found = {}
    for name, path in (("check", "check/mod.rs"), ("explain", "explain.rs"), ("metrics", "metrics/mod.rs"),
                       ("install", "install/mod.rs"), ("uninstall", "install/uninstall.rs")):
        text = read(f"{NODE_TOOL}/{path}")
        if name == "metrics":
            text += read(f"{NODE_TOOL}/metrics/server.rs")
        fields = []
        for arguments, field in re.findall(r"#\[arg\((.*?)\)\]\n\s+(?:pub(?:\(\w+\))? )?(\w+):", text, re.DOTALL):
            if re.search(r"\blong\b", arguments):
                fields.append(field)
        found[name] = {"--" + field.replace("_", "-") for field in fields} | {"--help"}
    return found


def of_commands(paper, text, tool, targets, tests, faults):
    """What is typed: the node tool's commands anywhere, and whole blocks."""
    for command, rest in re.findall(r"(?:^|[`#$] |\./|; |`)bulkhead (\w+)([^`\n#;|]*)", text, re.MULTILINE):
        if command not in tool:
            if re.search(rf"`(?:\./)?bulkhead {command}\b", text):
                faults.append(f"{paper}: bulkhead {command} is no command of the node tool")
            continue
        faults += [f"{paper}: bulkhead {command} has no flag {flag}"
                   for flag in re.findall(r"(?<![\w-])(--[a-z][a-z-]+)", rest) if flag not in tool[command]]
    for target in re.findall(r"(?:^|`|\| )make ([a-z][a-z0-9-]*)(?=[` \n])", text, re.MULTILINE):
        if target not in targets and re.search(rf"`make {target}[` ]", text):
            faults.append(f"{paper}: there is no make {target}")
    for before, language, lines, number in blocks(text):
        where = f"{paper}:{number}"
        if language not in LANGUAGES:
            faults.append(f"{where}: a block has one of these languages: {', '.join(LANGUAGES)}; this one has {language or 'none'}")
        if language == "toml":
            try:
                tomllib.loads("\n".join(lines))
            except tomllib.TOMLDecodeError as error:
                faults.append(f"{where}: {error}")
        if language == "console" and not any(re.match(r"[$#>] |>>> ", line) for line in lines):
            faults.append(f"{where}: console shows commands after `$ ` or `# `, with what they printed; this block has none")
        if language != "sh":
            continue
        runs = re.fullmatch(r"<!-- run by (.*) -->", before.strip())
        for name in re.split(r", ", runs[1]) if runs else ():
            if name not in tests and not (name.startswith("make ") and name[5:] in targets) and \
                    not os.path.exists(os.path.join(REPOSITORY, name)):
                faults.append(f"{where}: it is run by {name}, and there is no such test, target or file")
        for line in lines if not runs else ():
            words = line.split(" #")[0].split()
            if words and not (words[0] == "make" and words[1] in targets or words[0].endswith("bulkhead") or is_cargo(words, tests)):
                faults.append(f"{where}: nothing runs {line!r}: name what does, or show what it printed (console)")


def is_cargo(words, tests):
    """A call of cargo of which all is there: the crate, the program of tests, the variables, and the beginnings of names."""
    sources = "".join(read(path) for path in files("integration/src/**/*.rs") + files("integration/tests/**/*.rs"))
    words, names = list(words), []
    while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
        variable, _, value = words.pop(0).partition("=")
        if variable not in sources:
            return False
        while value.startswith('"') and not value.endswith('"') and words:
            value += " " + words.pop(0)
        names += value.strip('"').split() if variable == "BULKHEAD_TEST_ONLY" else []
    options = dict(zip(words, words[1:]))
    if words[:1] != ["cargo"] or options.get("-p", "integration") not in ("integration", "runsc-config", "bulkhead-node", "bulkhead-shim", "bulkhead-tool"):
        return False
    program = options.get("--test")
    if program and not os.path.isdir(os.path.join(REPOSITORY, "integration/tests", program)):
        return False
    if "--" in words and not words[-1].startswith("-"):
        names.append(words[-1])
    return all(any(name in test for test in tests) for name in names)


def literals():
    """The texts of the sources, joined where a literal goes on in the next line; what is put in is a gap."""
    text = "\n".join(read(path) for path in files("runsc-config/src/**/*.rs") + files("shim/src/**/*.rs"))
    text = re.sub(r"\\\n\s*", "", text)
    found = " \0 ".join(re.findall(r'"((?:[^"\\]|\\.)*)"', text))
    return re.sub(r"\{[^{}]*\}", "\0", found.replace('\\"', '"'))


def is_said(words, sources):
    """Whether a source has these words, with one value of up to six words put in."""
    if " ".join(words) in sources:
        return True
    return any(" ".join([*words[:start], "\0", *words[end:]]) in sources for start in range(len(words))
               for end in range(start + 1, min(start + 7, len(words) + 1)) if len(words) - (end - start) >= 2)


def of_errors(faults):
    """The words of a quoted error that are no value of one request are in the sources."""
    sources = literals()
    for paper, head, column in QUOTED:
        text, rows = read(paper), 0
        for row in text[text.find(head):].splitlines()[2:]:
            if not row.startswith("|"):
                break
            rows += 1
            cells = re.split(r"(?<!\\)\|", row.strip().strip("|"))
            for quoted in re.findall(r"`([^`]+)`", cells[column]):
                # Values: what is in quotes, numbers, paths, keys, and what the page leaves out.
                for part in re.split(r'"[^"]*"|/\S*|\b\d+\b|…|: |; |\bkey \S+|\bID\b|, |[()\[\]]', quoted):
                    words = part.strip(" :.").split()
                    if len(words) >= 3 and not is_said(words, sources):
                        faults.append(f"{paper}: {' '.join(words)!r} is quoted, and no source says so")
        if not rows:
            faults.append(f"{paper}: the table {head} is missing")


def of_attempts(faults):
    """The table of attempts, its summary, and the pages that name the number agree."""
    text = read("docs/security.md")
    summary = {cells[0]: int(cells[1]) for cells in re.findall(r"^\| ([^|*]+?) \| (\d+) \| \d+ \| [^|]+ \| 0 \|$", text, re.MULTILINE)}
    whole = re.search(r"^\| \*\*all\*\* \| \*\*(\d+)\*\* \|", text, re.MULTILINE)
    tried = {}
    for program, attempt in re.findall(r"^\| ([^|]+?) \| ([^|]+?) \| [^|]+ \| [^|]+ \| [^|]+ \|$", text, re.MULTILINE):
        if program in summary and "endless output" not in attempt and not attempt.isdigit():
            tried[program] = tried.get(program, 0) + 1
    if not whole or not summary:
        faults.append("docs/security.md: the summary of the attempts is missing")
        return
    total = int(whole[1])
    if sum(summary.values()) != total:
        faults.append(f"docs/security.md: the summary adds up to {sum(summary.values())}, and says {total}")
    faults += [f"docs/security.md: {name}: the summary has {count}, and the table {tried.get(name, 0)}"
               for name, count in summary.items() if tried.get(name, 0) != count]
    for paper in ("README.md", "docs/choosing.md"):
        for named in re.findall(r"of (\d+)(?: hostile attempts)?(?= \||,| hostile| get)", " ".join(
                re.findall(r"[^|\n]*hostile attempts[^|\n]*\|?", read(paper)))):
            if int(named) != total:
                faults.append(f"{paper}: {named} hostile attempts, and docs/security.md has {total}")


def main():
    if sys.argv[1:]:
        sys.exit(__doc__)
    faults, known, series, tool = [], keys(), metrics(), flags()
    targets = set(re.findall(r"^([a-z0-9-]+):", read("Makefile"), re.MULTILINE))
    tests = {*behaviours(), *units()}
    for paper in papers():
        text = read(paper)
        of_links(paper, text, faults)
        of_keys(paper, text, known, faults)
        of_metrics(paper, text, series, faults)
        of_commands(paper, text, tool, targets, tests, faults)
    for paper in files("docs/prometheus/*"):
        of_metrics(paper, read(paper), series, faults)
    of_policy(known, faults)
    of_errors(faults)
    of_attempts(faults)
    if not all(found for found in (known, series, tests)) or not all(len(found) > 1 for found in tool.values()):
        faults.append("papers.py: the sources have another form than it reads: no keys, series, flags or tests were found")
    for picture in files("docs/pictures/*.py"):
        drawn = subprocess.run([sys.executable, os.path.join(REPOSITORY, picture), "check"], capture_output=True, text=True, check=False)
        if drawn.returncode:
            faults.append(drawn.stderr.strip())
    for fault in faults:
        print(fault, file=sys.stderr)
    sys.exit(1 if faults else 0)


if __name__ == "__main__":
    main()
