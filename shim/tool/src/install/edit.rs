//! Edits of containerd's own file: what is added, and the same taken away. All else keeps its bytes, comments included.

use std::collections::BTreeMap;
use std::path::PathBuf;

use toml_edit::{Array, DocumentMut, Item, Table, Value};

use super::record::Edit;

/// What a file is to have.
#[derive(Debug, Clone, Default)]
pub(super) struct Addition {
    /// The entry of `imports`.
    pub(super) import: Option<PathBuf>,
    /// The plugin that the handlers go under.
    pub(super) plugin: &'static str,
    /// Handlers by name, each as the text of its table.
    pub(super) handlers: BTreeMap<String, String>,
}

/// What became of an edit.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Edited {
    pub(super) text: String,
    /// What of it is ours from now on.
    pub(super) edit: Edit,
    /// What is the administrator's and was left.
    pub(super) left: Vec<String>,
}

/// Adds what is not there. `before` is what an earlier installation added.
pub(super) fn add(text: &str, addition: &Addition, before: &Edit) -> Result<Edited, String> {
    let (mut doc, mut edit) = (parse(text)?, before.clone());
    let mut left = Vec::new();
    if let Some(import) = &addition.import {
        let import = import.display().to_string();
        edit.created_imports |= add_import(&mut doc, &import)?;
        edit.import = Some(import);
    }
    for (name, wanted) in &addition.handlers {
        let runtimes = runtimes(&mut doc, addition.plugin)?;
        let wanted_table = parse(wanted)?;
        match runtimes.get(name) {
            Some(found) if same(found, wanted) => {}
            Some(found)
                if before
                    .handlers
                    .get(name)
                    .is_none_or(|ours| !same(found, ours)) =>
            {
                left.push(name.clone());
                edit.handlers.remove(name);
                continue;
            }
            _ => {
                // With the blank line that stands before it.
                let mut table = wanted_table.as_table().clone();
                table.decor_mut().set_prefix("\n");
                runtimes.insert(name, Item::Table(table));
                edit.handlers.insert(name.clone(), wanted.clone());
            }
        }
    }
    let text = doc.to_string();
    Ok(Edited { text, edit, left })
}

/// Takes away what an installation added, unless somebody changed it since.
pub(super) fn remove(text: &str, plugins: &[&str], edit: &Edit) -> Result<Edited, String> {
    let mut doc = parse(text)?;
    let mut left = Vec::new();
    for (name, ours) in &edit.handlers {
        for plugin in plugins {
            match existing(&mut doc, plugin) {
                Some(runtimes) if runtimes.get(name).is_some_and(|found| same(found, ours)) => {
                    runtimes.remove(name);
                }
                Some(runtimes) if runtimes.contains_key(name) => left.push(name.clone()),
                _ => {}
            }
        }
    }
    if let Some(import) = &edit.import {
        remove_import(&mut doc, import, edit.created_imports);
    }
    Ok(Edited {
        text: doc.to_string(),
        edit: Edit::default(),
        left,
    })
}

/// A document that is written as it was read; one that is not would have changes that nobody asked for.
fn parse(text: &str) -> Result<DocumentMut, String> {
    let doc: DocumentMut = text
        .parse()
        .map_err(|e: toml_edit::TomlError| e.to_string())?;
    if doc.to_string().trim_end_matches('\n') == text.trim_end_matches('\n') {
        Ok(doc)
    } else {
        Err("cannot be edited without changing more than is asked for".to_owned())
    }
}

/// Whether `imports` had to be made.
fn add_import(doc: &mut DocumentMut, import: &str) -> Result<bool, String> {
    let Some(imports) = doc.get_mut("imports") else {
        let list: Array = [import].into_iter().collect();
        doc.insert("imports", Item::Value(Value::Array(list)));
        return Ok(true);
    };
    let list = imports
        .as_array_mut()
        .ok_or_else(|| "imports is not a list".to_owned())?;
    if list.iter().any(|one| one.as_str() == Some(import)) {
        return Ok(false);
    }
    // A list with a line for each keeps its form.
    let prefix = match list.len() {
        0 => String::new(),
        1 => " ".to_owned(),
        len => {
            let last = list
                .get(len - 1)
                .and_then(|last| last.decor().prefix()?.as_str());
            last.unwrap_or(" ").to_owned()
        }
    };
    let mut value = Value::from(import);
    value.decor_mut().set_prefix(prefix);
    list.push_formatted(value);
    Ok(false)
}

fn remove_import(doc: &mut DocumentMut, import: &str, created: bool) {
    let Some(list) = doc.get_mut("imports").and_then(Item::as_array_mut) else {
        return;
    };
    let place = list.iter().position(|one| one.as_str() == Some(import));
    if let Some(at) = place {
        list.remove(at);
    }
    if created && list.is_empty() {
        doc.remove("imports");
    }
}

/// The table of a plugin's handlers; made where it is missing, by no line of its own.
fn runtimes<'a>(doc: &'a mut DocumentMut, plugin: &str) -> Result<&'a mut Table, String> {
    let mut table = doc.as_table_mut();
    for name in ["plugins", plugin, "containerd", "runtimes"] {
        let entry = table.entry(name).or_insert_with(|| {
            let mut made = Table::new();
            made.set_implicit(true);
            Item::Table(made)
        });
        table = entry
            .as_table_mut()
            .ok_or_else(|| format!("{name} is written on one line, so no handler can be added"))?;
    }
    Ok(table)
}

fn existing<'a>(doc: &'a mut DocumentMut, plugin: &str) -> Option<&'a mut Table> {
    let mut table = doc.as_table_mut();
    for name in ["plugins", plugin, "containerd", "runtimes"] {
        table = table.get_mut(name)?.as_table_mut()?;
    }
    Some(table)
}

/// Whether a table says what a text says.
fn same(found: &Item, wanted: &str) -> bool {
    let Some(found) = found.as_table() else {
        return false;
    };
    let mut doc = DocumentMut::new();
    for (key, item) in found {
        doc.insert(key, item.clone());
    }
    let (found, wanted) = (doc.to_string().parse(), wanted.parse::<toml::Table>());
    matches!((found, wanted), (Ok::<toml::Table, _>(found), Ok(wanted)) if found == wanted)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::super::content;
    use super::*;
    use crate::containerd::{CRI_2, CRI_3, handlers as handlers_of};

    const MAIN: &str = "/etc/containerd/config.toml";

    fn import() -> Addition {
        Addition {
            import: Some(content::import(Path::new(MAIN))),
            plugin: CRI_3,
            handlers: BTreeMap::new(),
        }
    }

    fn handlers() -> Addition {
        Addition {
            import: None,
            plugin: CRI_2,
            handlers: content::handlers(None, true),
        }
    }

    /// What was added, after a look that all else is as before, that it is added once, and that it goes as it came.
    fn round_trip(text: &str, addition: &Addition) -> String {
        let added = add(text, addition, &Edit::default()).expect("an edit");
        assert!(added.left.is_empty());
        let again = add(&added.text, addition, &added.edit).expect("an edit");
        assert_eq!(again, added, "a second time changes nothing");
        let diff = similar::TextDiff::from_lines(text, &added.text);
        let removed: Vec<_> = diff
            .iter_all_changes()
            .filter(|change| change.tag() == similar::ChangeTag::Delete)
            .map(|change| change.to_string())
            .collect();
        assert!(
            removed.iter().all(|line| line.starts_with("imports")),
            "{removed:?}"
        );
        let gone = remove(&added.text, &[CRI_2, CRI_3], &added.edit).expect("an edit");
        assert_eq!(gone.text, text);
        added.text
    }

    const COMMENTED: &str = "# The node's own.\n\nversion = 3 # of 2.x\n\n# Nobody is killed first.\noom_score = -999\n\n\
        [plugins]\n  # A registry.\n  [plugins.'io.containerd.cri.v1.images'.registry]\n    config_path = '/etc/certs' # here\n\n\
        [debug]\nlevel = \"info\" # as ever\n# The end.\n";

    #[test]
    fn an_import_is_added_to_a_file_without_any_and_comments_stay() {
        let text = round_trip(COMMENTED, &import());
        assert!(
            text.contains("\nimports = [\"/etc/containerd/conf.d/bulkhead*.toml\"]\n"),
            "{text}"
        );
    }

    #[test]
    fn an_import_is_added_to_a_list() {
        let pattern = "/etc/containerd/conf.d/bulkhead*.toml";
        for (list, expected) in [
            ("[]", format!("[\"{pattern}\"]")),
            ("[\"/a.toml\"]", format!("[\"/a.toml\", \"{pattern}\"]")),
            (
                "['/a.toml', '/b.toml']",
                format!("['/a.toml', '/b.toml', \"{pattern}\"]"),
            ),
            (
                "[\n  \"/a.toml\",\n  \"/b.toml\", # b\n]",
                format!("[\n  \"/a.toml\",\n  \"/b.toml\",\n  \"{pattern}\", # b\n]"),
            ),
        ] {
            let text = format!("version = 3\nimports = {list}\n\n[debug]\nlevel = \"info\"\n");
            let added = add(&text, &import(), &Edit::default())
                .expect("an edit")
                .text;
            assert!(
                added.contains(&format!("imports = {expected}\n")),
                "{list}: {added}"
            );
            let gone = remove(
                &added,
                &[CRI_3],
                &add(&text, &import(), &Edit::default())
                    .expect("an edit")
                    .edit,
            );
            assert_eq!(gone.expect("an edit").text, text, "{list}");
        }
    }

    const OLD: &str = "version = 2\n\n[plugins.\"io.containerd.grpc.v1.cri\"]\n  sandbox_image = \"pause:1\" # ours\n\n\
        [plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.runc]\n  runtime_type = \"io.containerd.runc.v2\"\n  \
        [plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.runc.options]\n    SystemdCgroup = true\n\n\
        # What else.\n[metrics]\n  address = \"127.0.0.1:1338\"\n";

    #[test]
    fn handlers_are_added_beside_those_that_there_are() {
        for text in [
            OLD,
            "version = 2\n",
            "version = 2\n\n[plugins]\n",
            "version = 2\n[plugins.\"io.containerd.grpc.v1.cri\".containerd]\ndefault_runtime_name = \"runc\"\n",
        ] {
            let added = round_trip(text, &handlers());
            let table: toml::Table = added.parse().expect("TOML");
            let names: Vec<_> = handlers_of(&table)
                .into_iter()
                .filter(|handler| handler.plugin == CRI_2 && handler.is_bulkhead())
                .map(|handler| (handler.name.to_owned(), handler.policy().map(str::to_owned)))
                .collect();
            let network = Some(content::NETWORK.to_owned());
            let expected = [
                ("bulkhead".to_owned(), None),
                ("bulkhead-net".to_owned(), network),
            ];
            assert_eq!(names, expected, "{added}");
        }
    }

    #[test]
    fn a_handler_of_ours_is_renewed_and_somebody_elses_is_left() {
        let first = add(OLD, &handlers(), &Edit::default()).expect("an edit");
        let newer = Addition {
            handlers: content::handlers(Some(Path::new("/opt/shim")), true),
            ..handlers()
        };
        let renewed = add(&first.text, &newer, &first.edit).expect("an edit");
        assert_eq!(
            renewed.text.matches("runtime_path = \"/opt/shim\"").count(),
            2
        );
        let changed = first.text.replacen("dev.bulkhead.*", "dev.*", 1);
        let kept = add(&changed, &newer, &first.edit).expect("an edit");
        assert_eq!(kept.left, ["bulkhead"]);
        assert!(kept.text.contains("dev.*") && kept.text.matches("/opt/shim").count() == 1);
        let gone = remove(&changed, &[CRI_2], &first.edit).expect("an edit");
        assert_eq!(gone.left, ["bulkhead"]);
        assert!(gone.text.contains("runtimes.bulkhead]") && !gone.text.contains("bulkhead-net"));
    }

    #[test]
    fn what_the_administrator_adds_later_stays() {
        let added = add(COMMENTED, &import(), &Edit::default()).expect("an edit");
        let changed = added
            .text
            .replace("]\n\n[plugins]", ", \"/mine.toml\"]\n\n[plugins]");
        assert_ne!(changed, added.text);
        let gone = remove(&changed, &[CRI_3], &added.edit)
            .expect("an edit")
            .text;
        assert!(
            gone.contains("/mine.toml") && !gone.contains("bulkhead"),
            "{gone}"
        );
    }

    #[test]
    fn what_cannot_be_edited_is_said() {
        let edit =
            |text, addition: Addition| add(text, &addition, &Edit::default()).expect_err("refused");
        assert!(edit("imports = 3\n", import()).contains("imports is not a list"));
        let inline = "plugins = { \"io.containerd.grpc.v1.cri\" = {} }\n";
        assert!(edit(inline, handlers()).contains("on one line"));
        assert!(edit("version = [\n", import()).contains("TOML"));
    }
}
