//! Takes a CREATE INDEX statement apart: what it indexes, and where. SQLite's pragmas tell the
//! columns of an index but neither its expressions nor its WHERE.
//!
//! Reads only what SQLite itself stored in `sqlite_schema`, so it need not tell good SQL from bad.

/// What an index declares.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Declaration {
    /// Columns and expressions, without collation and order.
    pub(super) terms: Vec<String>,
    /// The WHERE of a partial index.
    pub(super) condition: Option<String>,
}

/// Takes `sql` apart; what it does not understand is left out.
pub(super) fn parse(sql: &str) -> Declaration {
    let tokens = tokens(sql);
    let mut declaration = Declaration::default();
    let mut depth = 0_usize;
    let mut start = 0;
    for (n, (from, to)) in tokens.iter().enumerate() {
        let token = sql.get(*from..*to).unwrap_or_default();
        match token {
            "(" => {
                depth += 1;
                if depth == 1 {
                    start = n + 1;
                }
            }
            "," if depth == 1 => {
                declaration.terms.push(term(sql, tokens.get(start..n).unwrap_or_default()));
                start = n + 1;
            }
            ")" => {
                depth = depth.saturating_sub(1);
                if depth == 0 {
                    declaration.terms.push(term(sql, tokens.get(start..n).unwrap_or_default()));
                    declaration.condition = condition(sql, tokens.get(n + 1..).unwrap_or_default());
                    break;
                }
            }
            _ => {}
        }
    }
    declaration
}

/// A term without its `COLLATE name` and `ASC` or `DESC`.
fn term(sql: &str, mut tokens: &[(usize, usize)]) -> String {
    let is = |token: Option<&(usize, usize)>, words: &[&str]| {
        token.is_some_and(|(from, to)| {
            let token = sql.get(*from..*to).unwrap_or_default();
            words.iter().any(|word| token.eq_ignore_ascii_case(word))
        })
    };
    if let [rest @ .., last] = tokens
        && is(Some(last), &["ASC", "DESC"])
    {
        tokens = rest;
    }
    if let [rest @ .., word, _] = tokens
        && is(Some(word), &["COLLATE"])
    {
        tokens = rest;
    }
    text(sql, tokens)
}

fn condition(sql: &str, tokens: &[(usize, usize)]) -> Option<String> {
    let [(from, to), rest @ ..] = tokens else { return None };
    sql.get(*from..*to)?.eq_ignore_ascii_case("WHERE").then(|| text(sql, rest))
}

/// The tokens one after the other: comments are left out, which may end a line.
fn text(sql: &str, tokens: &[(usize, usize)]) -> String {
    let parts: Vec<&str> = tokens.iter().filter_map(|(from, to)| sql.get(*from..*to)).collect();
    parts.join(" ")
}

/// Where the tokens stand: words, quoted texts and names, numbers, and single signs.
fn tokens(sql: &str) -> Vec<(usize, usize)> {
    let bytes = sql.as_bytes();
    let at = |n: usize| bytes.get(n).copied().unwrap_or_default();
    let is_word = |byte: u8| byte.is_ascii_alphanumeric() || b"_$.".contains(&byte) || byte >= 0x80;
    let find = |from: usize, what: &str| {
        let rest = sql.get(from..).unwrap_or_default();
        rest.find(what).map_or(bytes.len(), |n| from + n + what.len())
    };
    let mut tokens = Vec::new();
    let mut n = 0;
    while n < bytes.len() {
        let from = n;
        match at(n) {
            byte if byte.is_ascii_whitespace() => {
                n += 1;
                continue;
            }
            b'-' if at(n + 1) == b'-' => {
                n = find(n, "\n");
                continue;
            }
            b'/' if at(n + 1) == b'*' => {
                n = find(n + 2, "*/");
                continue;
            }
            quote @ (b'\'' | b'"' | b'`') => {
                let end = char::from(quote).to_string();
                n = find(n + 1, &end);
                while at(n) == quote {
                    n = find(n + 1, &end);
                }
            }
            b'[' => n = find(n + 1, "]"),
            b'x' | b'X' if at(n + 1) == b'\'' => n = find(n + 2, "'"),
            byte if is_word(byte) => {
                while is_word(at(n)) {
                    n += 1;
                }
            }
            // Signs of two characters must stay together.
            b'<' | b'>' | b'=' | b'!' | b'|' | b'-' => {
                let pairs: [&[u8]; 9] =
                    [b"<=", b">=", b"<>", b"<<", b">>", b"==", b"!=", b"||", b"->"];
                let pair = bytes.get(n..n + 2).is_some_and(|pair| pairs.contains(&pair));
                n += if pair { 2 } else { 1 };
                if bytes.get(from..n + 1) == Some(b"->>") {
                    n += 1;
                }
            }
            _ => n += 1,
        }
        tokens.push((from, n));
    }
    tokens
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_index_is_taken_apart() {
        let read = |sql: &str| {
            let Declaration { terms, condition } = parse(sql);
            (terms.join(" | "), condition.unwrap_or_default())
        };
        let plain = "CREATE UNIQUE INDEX \"a (b\" ON t (a, \"b,)\" COLLATE nocase DESC, [c d] asc)";
        assert_eq!(read(plain), ("a | \"b,)\" | [c d]".into(), String::new()));
        let hard = "CREATE UNIQUE INDEX i ON t(lower(a /* ) */), coalesce(b,'it''s )') || c -- x)\n, \
                    j ->> '$.x')\nWHERE d IS NOT NULL AND (e<>1 OR f >= 1.5e3)";
        assert_eq!(
            read(hard),
            (
                "lower ( a ) | coalesce ( b , 'it''s )' ) || c | j ->> '$.x'".into(),
                "d IS NOT NULL AND ( e <> 1 OR f >= 1.5e3 )".into()
            )
        );
    }

    #[test]
    fn cut_off_sql_does_not_panic() {
        let sql = "CREATE UNIQUE INDEX é ON t(lower(a), 'x''', [b], x'00', \"c\") WHERE a -- é";
        for n in 0..sql.len() {
            if let Some(sql) = sql.get(..n) {
                parse(sql);
            }
        }
    }
}
