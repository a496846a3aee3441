//! Query parameters, read as applications read them: the pairs of
//! `application/x-www-form-urlencoded`, decoded (URL Standard, section 5.1).

use std::borrow::Cow;

use memchr::{memchr, memchr2};

/// The first value of a parameter, decoded; names are case-sensitive. Allocates
/// only for a value that has escapes, and only if a rule asks for it.
pub(crate) fn first<'a>(query: &'a [u8], name: &[u8]) -> Option<Cow<'a, [u8]>> {
    values(query, name).next()
}

/// All values of a parameter.
pub(crate) fn values<'a>(query: &'a [u8], name: &[u8]) -> impl Iterator<Item = Cow<'a, [u8]>> {
    query.split(|&byte| byte == b'&').filter_map(move |pair| {
        let (key, value) = split(pair);
        is(key, name).then(|| match memchr2(b'%', b'+', value) {
            None => Cow::Borrowed(value),
            Some(_) => Cow::Owned(decoded(value).collect()),
        })
    })
}

/// A query without these parameters; the others stay as they came.
pub(crate) fn without(query: &[u8], names: &[&str]) -> Vec<u8> {
    let stays = |pair: &&[u8]| !names.iter().any(|name| is(split(pair).0, name.as_bytes()));
    query.split(|&byte| byte == b'&').filter(stays).collect::<Vec<_>>().join(b"&".as_slice())
}

fn split(pair: &[u8]) -> (&[u8], &[u8]) {
    match memchr(b'=', pair) {
        Some(at) => (&pair[..at], &pair[at + 1..]),
        None => (pair, &pair[pair.len()..]),
    }
}

fn is(key: &[u8], name: &[u8]) -> bool {
    decoded(key).eq(name.iter().copied())
}

/// The bytes that an encoded text stands for. A `%` without two digits is one itself.
fn decoded(text: &[u8]) -> impl Iterator<Item = u8> {
    let mut rest = text;
    std::iter::from_fn(move || {
        let (&byte, after) = rest.split_first()?;
        rest = after;
        match byte {
            b'+' => Some(b' '),
            b'%' => {
                let escape = after.split_first_chunk::<2>();
                let Some((byte, after)) =
                    escape.and_then(|([high, low], after)| Some((hex(*high)? << 4 | hex(*low)?, after)))
                else {
                    return Some(b'%');
                };
                rest = after;
                Some(byte)
            }
            byte => Some(byte),
        }
    })
}

fn hex(digit: u8) -> Option<u8> {
    char::from(digit).to_digit(16).and_then(|digit| u8::try_from(digit).ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_loses_a_parameter_and_nothing_else() {
        assert_eq!(without(b"a=1&t=x&b=%20&%74=y&tt=z", &["t"]), b"a=1&b=%20&tt=z");
        assert_eq!(without(b"t=x", &["t"]), b"");
        assert_eq!(values(b"t=x&a=1&%74=y%2B", b"t").collect::<Vec<_>>(), [b"x".as_slice(), b"y+"]);
    }

    #[test]
    fn the_first_value_of_a_name_is_found_decoded() {
        let value = |query: &str, name: &str| {
            first(query.as_bytes(), name.as_bytes()).map(|value| String::from_utf8(value.into()).unwrap())
        };
        for (query, name, expected) in [
            ("a=1&b=2&a=3", "a", Some("1")),
            ("a=1", "A", None),
            ("aa=1&a=2", "a", Some("2")),
            ("a", "a", Some("")),
            ("a=", "a", Some("")),
            ("", "a", None),
            ("a=b=c", "a", Some("b=c")),
            ("a=b%20c+d", "a", Some("b c d")),
            ("%61=1", "a", Some("1")),
            ("a=100%&a=2", "a", Some("100%")),
            ("a=%zz%4", "a", Some("%zz%4")),
        ] {
            assert_eq!(value(query, name).as_deref(), expected, "{query} {name}");
        }
    }
}
