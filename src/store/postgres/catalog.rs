//! Reads the catalog of a PostgreSQL database in a handful of queries, however many tables there
//! are: every ordinary and partitioned table of the host.

use std::collections::HashMap;

use crate::catalog::{Class, ForeignKey, Table, TableColumn, TypeKind};
use crate::error::Result;
use crate::store::keysql;
use crate::store::session::{Row, Session, literal, quote};

/// Tables of the host: no system, temporary or extension tables, no partitions, none of ours.
const HOST: &str = "c.relkind IN ('r', 'p', 'f') AND NOT c.relispartition AND c.relpersistence <> 't' \
    AND n.nspname NOT IN ('pg_catalog', 'information_schema', 'branchline') \
    AND n.nspname NOT LIKE 'pg\\_%' \
    AND NOT EXISTS (SELECT 1 FROM pg_depend d WHERE d.classid = 'pg_class'::regclass \
        AND d.objid = c.oid AND d.deptype = 'e')";

const FROM: &str = "pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace";

/// All host tables by name. Types outside the system's schema are named with theirs.
///
/// # Errors
/// Those of the database.
pub async fn read(session: &mut Session) -> Result<Vec<Table>> {
    let place = session
        .query_one("SELECT coalesce(current_schema(), ''), current_setting('search_path')", vec![])
        .await?;
    let look_in = "SELECT set_config('search_path', $1, true)";
    session.query(look_in, vec!["pg_catalog".into()]).await?;
    let mut tables = Tables { default_schema: place.text(0)?.to_owned(), ..Tables::default() };
    tables.read(session).await?;
    session.query(look_in, vec![place.text(1)?.into()]).await?;
    Ok(tables.list)
}

#[derive(Default)]
struct Tables {
    default_schema: String,
    list: Vec<Table>,
    by_oid: HashMap<i64, usize>,
    /// Domains by number: what each is made of, by name and number.
    domains: HashMap<i64, (String, i64)>,
}

impl Tables {
    async fn read(&mut self, session: &mut Session) -> Result<()> {
        let sql = format!(
            "SELECT c.oid::bigint, n.nspname, c.relname, row_security_active(c.oid)::int, \
             (has_table_privilege(c.oid, 'SELECT') AND has_schema_privilege(n.oid, 'USAGE'))::int, \
             (c.relkind = 'f')::int, \
             (EXISTS (SELECT 1 FROM pg_inherits i WHERE c.oid IN (i.inhrelid, i.inhparent)) \
              AND c.relkind <> 'p')::int, \
             (c.relkind = 'p' AND EXISTS (SELECT 1 FROM pg_partition_tree(c.oid) t \
              JOIN pg_class p ON p.oid = t.relid WHERE p.relkind = 'f'))::int \
             FROM {FROM} WHERE {HOST} ORDER BY n.nspname, c.relname"
        );
        for row in session.query(&sql, vec![]).await? {
            self.add(&row)?;
        }
        self.columns(session).await?;
        self.keys(session).await?;
        self.unique(session).await?;
        self.triggers(session).await?;
        self.partitions(session).await
    }

    fn add(&mut self, row: &Row) -> Result<()> {
        let (schema, table) = (row.text(1)?, row.text(2)?);
        let name = if schema == self.default_schema {
            table.to_owned()
        } else {
            format!("{schema}.{table}")
        };
        self.by_oid.insert(row.int(0)?, self.list.len());
        self.list.push(Table {
            name,
            schema: schema.to_owned(),
            table: table.to_owned(),
            obstacle: obstacle(row)?,
            ..Table::default()
        });
        Ok(())
    }

    fn of(&mut self, row: &Row) -> Result<Option<&mut Table>> {
        let at = self.by_oid.get(&row.int(0)?).copied();
        Ok(at.and_then(|at| self.list.get_mut(at)))
    }

    async fn columns(&mut self, session: &mut Session) -> Result<()> {
        let sql = "SELECT d.oid::bigint, b.typname, b.oid::bigint FROM pg_type d \
                   JOIN pg_type b ON b.oid = d.typbasetype WHERE d.typtype = 'd'";
        for row in session.query(sql, vec![]).await? {
            self.domains.insert(row.int(0)?, (row.text(1)?.to_owned(), row.int(2)?));
        }
        let sql = format!(
            "SELECT c.oid::bigint, a.attname, format_type(a.atttypid, a.atttypmod), t.typname, \
             a.attnotnull::int, (a.attgenerated <> '')::int, \
             (a.attidentity <> '' OR coalesce(pg_get_expr(e.adbin, e.adrelid), '') LIKE '%(%')::int, \
             t.oid::bigint, (e.oid IS NOT NULL)::int \
             FROM {FROM} JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 \
                AND NOT a.attisdropped \
             JOIN pg_type t ON t.oid = a.atttypid \
             LEFT JOIN pg_attrdef e ON e.adrelid = c.oid AND e.adnum = a.attnum \
             WHERE {HOST} ORDER BY c.oid, a.attnum"
        );
        for row in session.query(&sql, vec![]).await? {
            let column = TableColumn {
                name: row.text(1)?.to_owned(),
                sql_type: row.text(2)?.to_owned(),
                kind: kind(self.base(row.text(3)?, row.int(7)?)),
                not_null: row.flag(4)?,
                generated: row.flag(5)?,
                auto: row.flag(6)? && !row.flag(5)?,
                constant: row.flag(8)? && !row.flag(6)?,
            };
            if let Some(table) = self.of(&row)? {
                table.columns.push(column);
            }
        }
        Ok(())
    }

    /// What a domain is made of, at the bottom; any other type is itself.
    fn base<'a>(&'a self, name: &'a str, oid: i64) -> &'a str {
        let (mut name, mut oid) = (name, oid);
        // Domains cannot be circular.
        while let Some((base, next)) = self.domains.get(&oid) {
            (name, oid) = (base, *next);
        }
        name
    }

    /// Primary and foreign keys, a row for each of their columns.
    async fn keys(&mut self, session: &mut Session) -> Result<()> {
        let sql = format!(
            "SELECT c.oid::bigint, k.contype::text, k.oid::bigint, a.attname, \
             coalesce(k.confrelid::bigint, 0), coalesce(f.attname, ''), k.condeferrable::int, \
             (k.confdeltype IN ('c', 'n', 'd') OR k.confupdtype IN ('c', 'n', 'd'))::int \
             FROM {FROM} JOIN pg_constraint k ON k.conrelid = c.oid AND k.contype IN ('p', 'f') \
                AND k.conparentid = 0 \
             CROSS JOIN LATERAL unnest(k.conkey, k.confkey) WITH ORDINALITY AS u(own, other, n) \
             JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum = u.own \
             LEFT JOIN pg_attribute f ON f.attrelid = k.confrelid AND f.attnum = u.other \
             WHERE {HOST} ORDER BY c.oid, k.contype DESC, k.conname, u.n"
        );
        let mut last = 0;
        for row in session.query(&sql, vec![]).await? {
            let column = row.text(3)?.to_owned();
            if row.text(1)? == "p" {
                if let Some(table) = self.of(&row)? {
                    table.primary_key.push(column);
                }
                continue;
            }
            let target = self.by_oid.get(&row.int(4)?).map(|at| self.list[*at].name.clone());
            let Some(target) = target else { continue };
            let (id, target_column) = (row.int(2)?, row.text(5)?.to_owned());
            let (deferrable, acts) = (row.flag(6)?, row.opt_int(7)? == Some(1));
            let Some(table) = self.of(&row)? else { continue };
            match table.foreign_keys.last_mut() {
                Some(key) if last == id => {
                    key.columns.push(column);
                    key.target_columns.push(target_column);
                }
                _ => table.foreign_keys.push(ForeignKey {
                    columns: vec![column],
                    target,
                    target_columns: vec![target_column],
                    deferrable,
                    acts,
                }),
            }
            last = id;
        }
        Ok(())
    }

    async fn unique(&mut self, session: &mut Session) -> Result<()> {
        let sql = format!(
            "SELECT c.oid::bigint, i.indexrelid::bigint, a.attname FROM {FROM} \
             JOIN pg_index i ON i.indrelid = c.oid AND i.indisunique AND NOT i.indisprimary \
                AND i.indpred IS NULL AND i.indexprs IS NULL AND i.indisvalid \
             CROSS JOIN LATERAL unnest(i.indkey::int2[]) WITH ORDINALITY AS u(own, n) \
             JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum = u.own \
             WHERE {HOST} AND u.n <= i.indnkeyatts ORDER BY c.oid, i.indexrelid, u.n"
        );
        let mut last = 0;
        for row in session.query(&sql, vec![]).await? {
            let (index, column) = (row.int(1)?, row.text(2)?.to_owned());
            let Some(table) = self.of(&row)? else { continue };
            match table.unique.last_mut() {
                Some(columns) if last == index => columns.push(column),
                _ => table.unique.push(vec![column]),
            }
            last = index;
        }
        Ok(())
    }

    /// The host's triggers, those on partitions included. One that is guarded does not run where
    /// changes are applied.
    async fn triggers(&mut self, session: &mut Session) -> Result<()> {
        let sql = format!(
            "SELECT DISTINCT c.oid::bigint, t.tgname FROM {FROM} \
             JOIN pg_trigger t ON t.tgrelid = c.oid OR c.relkind = 'p' AND t.tgrelid IN \
                (SELECT relid FROM pg_partition_tree(c.oid)) \
             WHERE {HOST} AND NOT t.tgisinternal AND t.tgenabled <> 'D' \
             AND t.tgname NOT LIKE 'branchline\\_%' \
             AND pg_get_triggerdef(t.oid) NOT LIKE '%branchline.applying%' ORDER BY 1, 2"
        );
        for row in session.query(&sql, vec![]).await? {
            let name = row.text(1)?.to_owned();
            if let Some(table) = self.of(&row)? {
                table.host_triggers.push(name);
            }
        }
        Ok(())
    }

    async fn partitions(&mut self, session: &mut Session) -> Result<()> {
        let sql = format!(
            "SELECT c.oid::bigint, '\"' || replace(pn.nspname, '\"', '\"\"') || '\".\"' || \
             replace(p.relname, '\"', '\"\"') || '\"' \
             FROM {FROM} CROSS JOIN LATERAL pg_partition_tree(c.oid) t \
             JOIN pg_class p ON p.oid = t.relid JOIN pg_namespace pn ON pn.oid = p.relnamespace \
             WHERE {HOST} AND c.relkind = 'p' AND t.level > 0 AND p.relkind IN ('r', 'p') \
             ORDER BY c.oid, t.level, p.relname"
        );
        for row in session.query(&sql, vec![]).await? {
            let name = row.text(1)?.to_owned();
            if let Some(table) = self.of(&row)? {
                table.partitions.push(name);
            }
        }
        Ok(())
    }
}

/// Why a table cannot be captured, whatever is configured.
fn obstacle(row: &Row) -> Result<Option<String>> {
    let text = if row.flag(3)? {
        "row-level security hides rows from this role, so they could not be captured: run `track` \
         as a role with BYPASSRLS, or as the owner without FORCE ROW LEVEL SECURITY"
    } else if !row.flag(4)? {
        "this role may not read it, and capture runs with its rights: run `track` as the owner"
    } else if row.flag(5)? {
        "it is a foreign table: its rows are another database's"
    } else if row.flag(6)? {
        "it is part of a table inheritance, where a row stands in two tables at once; partitions \
         are no obstacle"
    } else if row.flag(7)? {
        "one of its partitions is a foreign table, whose rows are another database's"
    } else {
        return Ok(None);
    };
    Ok(Some(text.to_owned()))
}

/// A sequence that will give numbers which the table has already.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Behind {
    /// The class.
    pub class: String,
    /// The sequence, as SQL names it.
    pub sequence: String,
    /// The next number it gives.
    pub next: i64,
    /// The highest number in the table.
    pub highest: i64,
}

/// The sequences of surrogate keys that stand behind their tables.
///
/// # Errors
/// Those of the database.
pub async fn behind(session: &mut Session, classes: &[&Class]) -> Result<Vec<Behind>> {
    let numbered: HashMap<(String, String), (&Class, String)> = classes
        .iter()
        .filter_map(|class| {
            let column = &class.columns[class.surrogate?].name;
            let place = (keysql::table(class), column.to_string());
            Some((place, (*class, quote(column))))
        })
        .collect();
    let rows = session
        .query(
            "SELECT '\"' || replace(n.nspname, '\"', '\"\"') || '\".\"' || \
             replace(c.relname, '\"', '\"\"') || '\"', a.attname, \
             quote_ident(sn.nspname) || '.' || quote_ident(s.relname), q.seqincrement \
             FROM pg_catalog.pg_depend d \
             JOIN pg_catalog.pg_class s ON s.oid = d.objid AND s.relkind = 'S' \
             JOIN pg_catalog.pg_namespace sn ON sn.oid = s.relnamespace \
             JOIN pg_catalog.pg_sequence q ON q.seqrelid = s.oid \
             JOIN pg_catalog.pg_class c ON c.oid = d.refobjid AND d.refobjsubid > 0 \
             JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
             JOIN pg_catalog.pg_attribute a ON a.attrelid = c.oid AND a.attnum = d.refobjsubid \
             WHERE d.classid = 'pg_class'::regclass AND d.refclassid = 'pg_class'::regclass \
             AND d.deptype IN ('a', 'i') AND q.seqincrement > 0 \
             AND CASE s.relkind WHEN 'S' THEN has_sequence_privilege(s.oid, 'SELECT') END ORDER BY 1, 2",
            vec![],
        )
        .await?;
    let mut parts = Vec::new();
    for row in &rows {
        let place = (row.text(0)?.to_owned(), row.text(1)?.to_owned());
        let Some((class, column)) = numbered.get(&place) else { continue };
        let (table, sequence) = (&place.0, row.text(2)?);
        parts.push(format!(
            "SELECT {}, {}, CASE WHEN s.is_called THEN s.last_value + {} ELSE s.last_value END, \
             (SELECT max({column}) FROM {table})::bigint FROM {sequence} AS s",
            literal(&class.name),
            literal(sequence),
            row.int(3)?,
        ));
    }
    let mut behind = Vec::new();
    for part in parts.chunks(SEQUENCES_MAX) {
        for row in session.query(&part.join(" UNION ALL "), vec![]).await? {
            let (next, highest) = (row.int(2)?, row.opt_int(3)?);
            if let Some(highest) = highest.filter(|highest| *highest >= next) {
                behind.push(Behind {
                    class: row.text(0)?.to_owned(),
                    sequence: row.text(1)?.to_owned(),
                    next,
                    highest,
                });
            }
        }
    }
    Ok(behind)
}

/// Sequences that one statement looks at.
const SEQUENCES_MAX: usize = 200;

/// What a type of `pg_type` is to us.
fn kind(name: &str) -> TypeKind {
    match name {
        "bool" => TypeKind::Bool,
        "int2" | "int4" | "int8" => TypeKind::Int,
        "float4" | "float8" => TypeKind::Float,
        "numeric" => TypeKind::Decimal,
        "bytea" => TypeKind::Bytes,
        "uuid" => TypeKind::Uuid,
        "bpchar" => TypeKind::PaddedText,
        "timestamptz" => TypeKind::TimestampTz,
        _ => TypeKind::Text,
    }
}
