//! Regular expressions over whole names.

use regex::bytes::{RegexBuilder, RegexSet, RegexSetBuilder};

use crate::{EntryError, HostName, WarningKind, ports::PortQuery};

/// How many expressions a list may have: compiling one may take a millisecond.
pub(crate) const MAX_PATTERNS: usize = 1000;
/// The longest expression, in bytes.
const MAX_SOURCE: usize = 1000;
/// The largest compiled form of one expression, in bytes.
const MAX_COMPILED: usize = 1 << 18;
/// The largest compiled form of all expressions of a list together, in bytes.
pub(crate) const MAX_COMPILED_LIST: usize = 1 << 23;
/// How deep groups may nest, so that parsing an expression is cheap.
const MAX_NESTING: u32 = 50;
/// The memory that matching may use for the states it has seen, in bytes.
const MAX_STATES: usize = 1 << 22;

/// Checks one expression and says what in it is probably not meant.
pub(crate) fn check(source: &str) -> Result<Vec<WarningKind>, EntryError> {
    if source.is_empty() {
        return Err(EntryError::EmptyPattern);
    }
    if source.len() > MAX_SOURCE {
        return Err(EntryError::PatternTooLong { limit: MAX_SOURCE });
    }
    if !source.is_ascii() {
        return Err(EntryError::PatternNotAscii);
    }
    // The expression must be valid by itself before it is put between anchors: `a)|(?:b` would escape from them.
    for text in [source, anchored(source).as_str()] {
        RegexBuilder::new(text)
            .case_insensitive(true)
            .unicode(false)
            .size_limit(MAX_COMPILED)
            .nest_limit(MAX_NESTING)
            .build()
            .map_err(|error| entry_error(&error))?;
    }
    Ok(warnings(source))
}

/// The pattern entries of one list.
#[derive(Clone, Debug)]
pub(crate) struct PatternIndex {
    set: RegexSet,
    /// Of each expression, its port and its position in the list; in the order of the set and of the list.
    entries: Vec<(Option<u16>, usize)>,
}

impl PatternIndex {
    /// Compiles expressions that [`check`] has accepted, in the order of the list.
    ///
    /// # Errors
    /// When they are too large together.
    pub(crate) fn new<'a>(
        patterns: impl IntoIterator<Item = (&'a str, Option<u16>, usize)>,
    ) -> Result<Self, regex::Error> {
        let mut sources = Vec::new();
        let mut entries = Vec::new();
        for (source, port, index) in patterns {
            sources.push(anchored(source));
            entries.push((port, index));
        }
        let set = RegexSetBuilder::new(sources)
            .case_insensitive(true)
            .unicode(false)
            .size_limit(MAX_COMPILED_LIST)
            .dfa_size_limit(MAX_STATES)
            .nest_limit(MAX_NESTING + 1)
            .build()?;
        Ok(Self { set, entries })
    }

    /// The lowest index of an entry.
    pub(crate) fn first(&self) -> Option<usize> {
        self.entries.first().map(|(_, index)| *index)
    }

    /// The lowest index of an entry that matches the whole of `name` and answers the query for ports.
    pub(crate) fn find(&self, name: &HostName, query: PortQuery) -> Option<usize> {
        if self.entries.is_empty() {
            return None;
        }
        let matches = self.set.matches(name.as_str().as_bytes());
        let entries = matches.iter().filter_map(|at| self.entries.get(at));
        entries.filter(|(port, _)| query.takes(*port)).map(|(_, index)| *index).min()
    }
}

fn anchored(source: &str) -> String {
    format!(r"\A(?:{source})\z")
}

fn entry_error(error: &regex::Error) -> EntryError {
    match error {
        regex::Error::CompiledTooBig(limit) => EntryError::PatternTooLarge { limit: *limit },
        // The message of a syntax error is several lines with a drawing; its last line is the cause.
        other => {
            let text = other.to_string();
            let cause = text.lines().last().unwrap_or_default();
            EntryError::PatternSyntax(cause.trim_start_matches("error: ").to_owned())
        }
    }
}

/// Dots that are not escaped. One that is repeated (`.*`) is meant, except before a name at the very beginning,
/// where it takes in hosts of other domains.
fn warnings(source: &str) -> Vec<WarningKind> {
    let mut warnings = Vec::new();
    let leading = [".*", ".+"].iter().find_map(|head| source.trim_start_matches('^').strip_prefix(head));
    if leading.is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_alphanumeric())) {
        warnings.push(WarningKind::LooseBeginning);
    }
    let mut bytes = source.bytes().enumerate().peekable();
    let mut class_depth = 0usize;
    while let Some((at, byte)) = bytes.next() {
        match byte {
            b'\\' => drop(bytes.next()),
            b'[' => class_depth += 1,
            b']' => class_depth = class_depth.saturating_sub(1),
            b'.' if class_depth == 0 => {
                let repeated = matches!(bytes.peek(), Some((_, b'*' | b'+' | b'?' | b'{')));
                if !repeated {
                    warnings.push(WarningKind::UnescapedDot { offset: at });
                }
            }
            _ => {}
        }
    }
    warnings
}

#[cfg(test)]
mod tests {
    use super::*;

    fn find(patterns: &[&str], name: &str) -> Option<usize> {
        for pattern in patterns {
            check(pattern).unwrap();
        }
        let index = PatternIndex::new(patterns.iter().enumerate().map(|(i, p)| (*p, None, i))).unwrap();
        index.find(&name.parse().unwrap(), PortQuery::Any)
    }

    #[test]
    fn an_expression_matches_whole_names_in_any_case() {
        assert_eq!(find(&[r"allowed\.test"], "allowed.test"), Some(0));
        assert_eq!(find(&[r"ALLOWED\.Test"], "allowed.test"), Some(0));
        assert_eq!(find(&[r"allowed\.test"], "allowed.test.evil.test"), None);
        assert_eq!(find(&[r"allowed\.test"], "x-allowed.test"), None);
        assert_eq!(find(&[r"a|allowed\.test"], "x-allowed.test"), None);
        assert_eq!(find(&["z", r"[a-z]+\.test", "a.*"], "allowed.test"), Some(1));
    }

    #[test]
    fn an_expression_cannot_escape_from_its_anchors() {
        for escape in ["a)|(?:.*", "(?x) a # ", "a\\", "[a", "(?m:", "(?x)a|.*#"] {
            let refused = check(escape).is_err();
            assert!(refused, "{escape:?}");
        }
        assert_eq!(find(&["(?m)^allowed$"], "allowed.test"), None);
    }

    #[test]
    fn what_could_cost_too_much_is_refused() {
        let alternation = vec!["abcdef"; 10_000].join("|");
        assert!(matches!(check(&alternation), Err(EntryError::PatternTooLong { .. })));
        for large in ["(?:[a-z]{1000}){1000}", r"(?u)\pL{1000}", "((a{99}){99}){99}"] {
            assert!(matches!(check(large), Err(EntryError::PatternTooLarge { .. })), "{large}");
        }
        assert!(matches!(check(&"(".repeat(900)), Err(EntryError::PatternSyntax(_))));
        assert!(matches!(check(r"\p{Greek}"), Err(EntryError::PatternSyntax(_))));
        assert!(matches!(check("(a)\\1"), Err(EntryError::PatternSyntax(_))));
        assert!(matches!(check("bücher"), Err(EntryError::PatternNotAscii)));
        assert!(matches!(check(""), Err(EntryError::EmptyPattern)));
        // Linear time: what a backtracking engine would take years for.
        let name = format!("{}.x", ["a".repeat(63), "a".repeat(63), "a".repeat(63)].join("a."));
        assert_eq!(find(&["(a+)+$"], &name.replace("a.", ".")), None);
    }

    #[test]
    fn dots_that_are_probably_meant_as_dots_are_warned_of() {
        use WarningKind::*;
        let warnings = |source| check(source).unwrap();
        assert_eq!(warnings("anthropic.com"), [UnescapedDot { offset: 9 }]);
        assert_eq!(warnings(r".*anthropic\.com"), [LooseBeginning]);
        assert_eq!(warnings(r"(?:.*\.)?anthropic\.com"), []);
        assert_eq!(warnings(r".*\.anthropic\.com"), []);
        assert_eq!(warnings(r"[a.]\.com"), []);
    }
}
