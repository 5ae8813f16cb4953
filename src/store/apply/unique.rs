//! Rows that take each other's unique values, and rows that two servers gave the same one.
//!
//! Asked only when the plain way was refused. Whoever has a value that a row of the batch is to get
//! is looked up: a row that moves away from it in the same batch, or leaves, is parked first on a
//! value of its own; any other row is in the way, and the record that wants the value is held, both
//! rows named.
//!
//! A parked row has NULL in one column of the index where it may, else a value of the same shape as
//! its own (digits for digits, letters for letters, as long as it is, another year for a date): so
//! it fits the type, its length and most checks.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::sync::Arc;

use super::hold::Refusal;
use super::write::{RowWrite, Writer};
use crate::catalog::{Class, Column, Tracked};
use crate::error::{Error, Result};
use crate::record::{RowId, Value};
use crate::store::image;
use crate::store::keysql;
use crate::store::rows::{self, Located};
use crate::store::session::{Datum, quote};

/// Values of the same shape that are tried before a row cannot be parked.
const TRIES_MAX: u64 = 64;

/// Two rows that are to have the same values of unique columns.
#[derive(Clone, Debug)]
pub(super) struct Clash {
    /// The row that is to get them.
    pub(super) row: RowId,
    /// The row that has them.
    pub(super) other: RowId,
    /// The columns.
    pub(super) columns: Vec<Arc<str>>,
}

/// A row of the batch: what it holds, and what it is to hold.
struct Place {
    tracked: Arc<Tracked>,
    before: BTreeMap<Arc<str>, Value>,
    /// `None` for a row that leaves.
    after: Option<BTreeMap<Arc<str>, Value>>,
}

/// Parks rows whose unique values others are to get. What parking takes from a row that is updated
/// later is added to its update. Yields what gives rows that leave back what they held, should they
/// stay.
pub(super) async fn park(
    writer: &mut Writer<'_>,
    inserts: &[RowWrite],
    updates: &mut [RowWrite],
    leaving: &[(Arc<Tracked>, RowId, RowId)],
) -> Result<Vec<RowWrite>, Refusal> {
    let places = places(writer, inserts, updates, leaving).await?;
    let (mut clashes, mut parks) = (Vec::new(), BTreeMap::<RowId, BTreeSet<usize>>::new());
    let mut order: Vec<&RowId> = places.keys().collect();
    order.sort_unstable();
    let mut taken: HashMap<(i32, usize, String), RowId> = HashMap::new();
    for row in order {
        let place = &places[row];
        let Some(after) = &place.after else { continue };
        for (n, list) in place.tracked.class.unique.iter().enumerate() {
            let class = &place.tracked.class;
            let Some(wanted) = tuple(class, list, after) else { continue };
            if tuple(class, list, &place.before).as_ref() == Some(&wanted) {
                taken.insert((place.tracked.id, n, format!("{wanted:?}")), row.clone());
                continue;
            }
            let columns = || list.iter().map(|n| Arc::clone(&class.columns[*n].name)).collect();
            if let Some(other) = taken.get(&(place.tracked.id, n, format!("{wanted:?}"))) {
                clashes.push(Clash { row: row.clone(), other: other.clone(), columns: columns() });
                continue;
            }
            for other in holders(writer, class, list, &wanted).await? {
                if other == *row {
                    continue;
                }
                let moves = places.get(&other).is_some_and(|other| match &other.after {
                    Some(after) => tuple(class, list, after).as_ref() != Some(&wanted),
                    None => true,
                });
                if moves {
                    parks.entry(other).or_default().insert(n);
                } else {
                    clashes.push(Clash { row: row.clone(), other, columns: columns() });
                }
            }
            taken.insert((place.tracked.id, n, format!("{wanted:?}")), row.clone());
        }
    }
    if !clashes.is_empty() {
        return Err(Refusal::Clash(clashes));
    }
    let mut back = Vec::new();
    for (row, lists) in parks {
        let place = &places[&row];
        let mut parked = RowWrite {
            tracked: Arc::clone(&place.tracked),
            row: row.clone(),
            values: BTreeMap::new(),
        };
        for list in lists {
            let list = &place.tracked.class.unique[list];
            if list
                .iter()
                .any(|n| parked.values.contains_key(&place.tracked.class.columns[*n].name))
            {
                continue;
            }
            let (name, value) = own_value(writer, place, &row, list).await?;
            parked.values.insert(name, value);
        }
        let held = |name: &Arc<str>| place.before.get(name).cloned().unwrap_or(Value::Null);
        match updates.iter_mut().find(|update| update.row == row) {
            Some(update) => {
                for name in parked.values.keys() {
                    update.values.entry(Arc::clone(name)).or_insert_with(|| held(name));
                }
            }
            None => {
                let values = parked.values.keys().map(|name| (Arc::clone(name), held(name)));
                back.push(RowWrite { values: values.collect(), ..parked.clone() });
            }
        }
        writer.update(vec![parked]).await?;
    }
    Ok(back)
}

/// Rows of classes with unique columns, with what they hold.
async fn places(
    writer: &mut Writer<'_>,
    inserts: &[RowWrite],
    updates: &[RowWrite],
    leaving: &[(Arc<Tracked>, RowId, RowId)],
) -> Result<HashMap<RowId, Place>> {
    let mut places = HashMap::new();
    for write in inserts.iter().filter(|write| !write.tracked.class.unique.is_empty()) {
        let (before, after) = (BTreeMap::new(), Some(write.values.clone()));
        let tracked = Arc::clone(&write.tracked);
        places.insert(write.row.clone(), Place { tracked, before, after });
    }
    let mut by_class: BTreeMap<i32, Located> = BTreeMap::new();
    let there = updates.iter().map(|write| (&write.tracked, &write.row));
    for (tracked, row) in there.chain(leaving.iter().map(|(tracked, row, _)| (tracked, row))) {
        if tracked.class.unique.is_empty() {
            continue;
        }
        let Some(Some(local)) = writer.found.get(row) else { continue };
        let (_, list) =
            by_class.entry(tracked.id).or_insert_with(|| (Arc::clone(tracked), Vec::new()));
        list.push((row.clone(), local.clone()));
    }
    for (tracked, locals) in by_class.into_values() {
        let images = rows::read(writer.session, writer.catalog, &tracked, &locals).await?;
        for (row, values) in images {
            let before: BTreeMap<Arc<str>, Value> = values.into_iter().collect();
            let update = updates.iter().find(|write| write.row == row);
            let after = update.map(|write| {
                let mut after = before.clone();
                after.extend(write.values.clone());
                after
            });
            places.insert(row, Place { tracked: Arc::clone(&tracked), before, after });
        }
    }
    Ok(places)
}

/// The values of unique columns; `None` where one is NULL or not known: such rows never clash.
fn tuple(class: &Class, list: &[usize], values: &BTreeMap<Arc<str>, Value>) -> Option<Vec<Value>> {
    let value = |n: &usize| match values.get(&class.columns[*n].name)? {
        Value::Null => None,
        value => Some(value.clone()),
    };
    list.iter().map(value).collect()
}

/// The rows that have these values.
async fn holders(
    writer: &mut Writer<'_>,
    class: &Class,
    list: &[usize],
    values: &[Value],
) -> Result<Vec<RowId>, Refusal> {
    let dialect = writer.session.dialect();
    let columns: Vec<&Column> = list.iter().map(|n| &class.columns[*n]).collect();
    let mut binds: Vec<Datum> = Vec::with_capacity(values.len());
    for (value, column) in values.iter().zip(&columns) {
        // A row that is not here yet is referred to by nobody.
        let Ok(value) = writer.local(column, value) else { return Ok(Vec::new()) };
        binds.push(image::datum(dialect, &value, column));
    }
    let matches = columns.iter().enumerate().map(|(n, column)| {
        let bind = image::bind_sql(dialect, &format!("${}", n + 1), column);
        format!("t.{} = {bind}", quote(&column.name))
    });
    let sql = format!(
        "SELECT {} FROM {} AS t WHERE {}",
        keysql::key(dialect, writer.catalog, class, "t")?,
        keysql::table(class),
        matches.collect::<Vec<_>>().join(" AND ")
    );
    let mut list = Vec::new();
    for row in writer.session.query(&sql, binds).await? {
        if let Some(key) = row.opt_text(0)? {
            list.push(RowId { class: Arc::clone(&class.name), key: key.into() });
        }
    }
    Ok(list)
}

/// A column of an index, and a value for it that nobody else has.
async fn own_value(
    writer: &mut Writer<'_>,
    place: &Place,
    row: &RowId,
    list: &[usize],
) -> Result<(Arc<str>, Value), Refusal> {
    let class = &place.tracked.class;
    let free = |n: &&usize| !class.key.contains(*n) && !class.columns[**n].generated;
    if let Some(n) = list.iter().filter(free).find(|n| !class.columns[**n].not_null) {
        return Ok((Arc::clone(&class.columns[*n].name), Value::Null));
    }
    for n in list.iter().filter(free) {
        let column = &class.columns[*n];
        let Some(own) = place.before.get(&column.name) else { continue };
        for attempt in 0..TRIES_MAX {
            let Some(value) = shaped(own, column, row, attempt) else { break };
            let mut values = place.before.clone();
            values.insert(Arc::clone(&column.name), value.clone());
            let wanted = tuple(class, list, &values).unwrap_or_default();
            if holders(writer, class, list, &wanted).await?.is_empty() {
                return Ok((Arc::clone(&column.name), value));
            }
        }
    }
    Err(Refusal::Rows(vec![(
        row.clone(),
        Error::constraint(format!(
            "rows of `{}` take each other's unique values, and none of them can be parked on another",
            class.name
        )),
    )]))
}

/// Another value of the same shape. The same row gives the same values each time.
fn shaped(own: &Value, column: &Column, row: &RowId, attempt: u64) -> Option<Value> {
    let mut hasher = DefaultHasher::new();
    (&row.class, &row.key, &column.name, attempt).hash(&mut hasher);
    let mut noise = hasher.finish();
    let mut next = |bound: u64| {
        let digit = noise % bound;
        noise = noise.rotate_right(7).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ digit;
        digit
    };
    Some(match own {
        Value::Int(value) => {
            let text = shape(&value.to_string(), &mut next);
            Value::Int(text.parse().unwrap_or(*value))
        }
        Value::Float(value) => Value::Float(value + next(1 << 20) as f64 + 1.0),
        Value::Text(text) => {
            let kind = column.sql_type.to_ascii_lowercase();
            match (kind.starts_with("date") || kind.starts_with("timestamp"), text.get(..4)) {
                // The calendar repeats after 400 years.
                (true, Some(year)) => {
                    let year: u64 = year.parse().ok()?;
                    Value::Text(format!("{:04}{}", year + 400 * (1 + next(18)), &text[4..]))
                }
                _ => Value::Text(shape(text, &mut next)),
            }
        }
        Value::Bytes(bytes) => Value::Bytes(bytes.iter().map(|_| next(256) as u8).collect()),
        Value::Null | Value::Bool(_) | Value::Ref(_) => return None,
    })
}

/// A text with other digits and letters in the same places.
fn shape(text: &str, next: &mut impl FnMut(u64) -> u64) -> String {
    let hex = text.len() >= 32 && text.chars().all(|c| c.is_ascii_hexdigit() || c == '-');
    let letters = if hex { 6 } else { 26 };
    let mut first = true;
    let other = |c: char| {
        if !c.is_ascii_alphanumeric() {
            return c;
        }
        let lead = std::mem::take(&mut first);
        let (base, bound) = match c {
            // A number keeps its length.
            '0'..='9' if lead && !hex => ('1', 9),
            '0'..='9' => ('0', 10),
            'a'..='z' => ('a', letters),
            _ => ('A', letters),
        };
        char::from_u32(u32::from(base) + u32::try_from(next(bound)).unwrap_or(0)).unwrap_or(c)
    };
    text.chars().map(other).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::TypeKind;

    fn other(own: &Value, sql_type: &str, attempt: u64) -> Value {
        let column = Column {
            name: "code".into(),
            sql_type: sql_type.into(),
            kind: TypeKind::Text,
            not_null: true,
            generated: false,
            references: Vec::new(),
        };
        let row = RowId { class: "bed".into(), key: "b1".into() };
        shaped(own, &column, &row, attempt).unwrap()
    }

    #[test]
    fn a_parked_value_has_the_shape_of_its_own() {
        for attempt in 0..50 {
            let Value::Text(code) = other(&Value::Text("AB-17x".into()), "varchar(6)", attempt)
            else {
                panic!()
            };
            let shape: String = code
                .chars()
                .map(|c| match c {
                    'A'..='Z' => 'A',
                    'a'..='z' => 'a',
                    '0'..='9' => '0',
                    c => c,
                })
                .collect();
            assert_eq!(shape, "AA-00a");
            let Value::Int(number) = other(&Value::Int(-1_234), "integer", attempt) else {
                panic!()
            };
            assert!((-9_999..=-1_000).contains(&number), "{number}");
            let Value::Text(date) = other(&Value::Text("2024-02-29".into()), "date", attempt)
            else {
                panic!()
            };
            assert!(date.ends_with("-02-29") && date.len() == 10, "{date}");
        }
        let values: BTreeSet<String> = (0..50)
            .map(|n| format!("{:?}", other(&Value::Text("AB-17".into()), "text", n)))
            .collect();
        assert!(values.len() > 40, "{values:?}");
    }
}
