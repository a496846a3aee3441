//! Path prefixes by their elements: `/a/b` is a prefix of `/a/b` and `/a/b/c`,
//! not of `/a/bc`.

use crate::route::hash::ConfiguredMap;

/// Values by prefix, found in one walk along a path however many there are.
#[derive(Debug)]
pub(super) struct Prefixes<T> {
    /// The first is the root.
    nodes: Vec<Node<T>>,
}

#[derive(Debug)]
struct Node<T> {
    /// By element.
    children: ConfiguredMap<Box<[u8]>, usize>,
    value: Option<T>,
    /// The node around it.
    outer: Option<usize>,
}

impl<T> Node<T> {
    fn within(outer: Option<usize>) -> Self {
        Self { children: ConfiguredMap::default(), value: None, outer }
    }
}

impl<T> Default for Prefixes<T> {
    fn default() -> Self {
        Self { nodes: vec![Node::within(None)] }
    }
}

impl<T> Prefixes<T> {
    /// The place of a prefix's value. A final slash makes no difference.
    pub(super) fn entry(&mut self, prefix: &[u8]) -> &mut Option<T> {
        let mut at = 0;
        for element in elements(prefix) {
            at = match self.nodes[at].children.get(element) {
                Some(&child) => child,
                None => {
                    self.nodes.push(Node::within(Some(at)));
                    let child = self.nodes.len() - 1;
                    self.nodes[at].children.insert(element.into(), child);
                    child
                }
            };
        }
        &mut self.nodes[at].value
    }

    /// The same with other values.
    pub(super) fn map<U>(self, mut change: impl FnMut(T) -> U) -> Prefixes<U> {
        let nodes = self.nodes.into_iter().map(|node| Node {
            children: node.children,
            value: node.value.map(&mut change),
            outer: node.outer,
        });
        Prefixes { nodes: nodes.collect() }
    }

    /// The values of all prefixes of a path, the longest first. The root is a
    /// prefix of every target, `*` and a tunnel's empty path included.
    pub(super) fn of<'a>(&'a self, path: &[u8]) -> impl Iterator<Item = &'a T> {
        let mut deepest = 0;
        for element in elements(path) {
            match self.nodes[deepest].children.get(element) {
                Some(&child) => deepest = child,
                None => break,
            }
        }
        std::iter::successors(Some(deepest), |&at| self.nodes[at].outer)
            .filter_map(|at| self.nodes[at].value.as_ref())
    }
}

/// The elements between a path's slashes. What does not begin with one has none.
fn elements(path: &[u8]) -> impl Iterator<Item = &[u8]> {
    let path = path.strip_prefix(b"/").unwrap_or_default();
    let path = path.strip_suffix(b"/").unwrap_or(path);
    let absent = path.is_empty();
    path.split(|&byte| byte == b'/').filter(move |_| !absent)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_root_holds_every_target() {
        let mut prefixes = Prefixes::default();
        *prefixes.entry(b"/") = Some(0);
        for path in ["/", "/a", "*", ""] {
            assert_eq!(prefixes.of(path.as_bytes()).collect::<Vec<_>>(), [&0], "{path}");
        }
    }

    proptest! {
        /// The prefixes found are those that the text says, the longest first.
        #[test]
        fn prefixes_are_found_by_whole_elements(
            all in prop::collection::vec("(/[ab]{1,2}){0,3}/?", 0..12),
            path in "(/[ab]{1,2}){0,4}/?",
        ) {
            let path = if path.is_empty() { "/".to_owned() } else { path };
            let mut prefixes = Prefixes::default();
            for prefix in &all {
                *prefixes.entry(prefix.as_bytes()) = Some(prefix.trim_end_matches('/').to_owned());
            }
            let mut expected: Vec<String> = all.iter().map(|p| p.trim_end_matches('/').to_owned()).collect();
            expected.retain(|prefix| format!("{}/", path.trim_end_matches('/')).starts_with(&format!("{prefix}/")));
            expected.sort_by_key(|prefix| std::cmp::Reverse(prefix.len()));
            expected.dedup();
            let found: Vec<String> = prefixes.of(path.as_bytes()).cloned().collect();
            prop_assert_eq!(found, expected);
        }
    }
}
