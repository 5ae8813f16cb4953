//! Reads the catalog of a PostgreSQL database in a handful of queries, however many tables there
//! are: every ordinary and partitioned table of the host.

use std::collections::HashMap;

use crate::catalog::{ForeignKey, Table, TableColumn, TypeKind};
use crate::error::Result;
use crate::store::session::{Row, Session};

/// Tables of the host: no system, temporary or extension tables, no partitions, none of ours.
const HOST: &str = "c.relkind IN ('r', 'p') AND NOT c.relispartition AND c.relpersistence <> 't' \
    AND n.nspname NOT IN ('pg_catalog', 'information_schema', 'branchline') \
    AND n.nspname NOT LIKE 'pg\\_%' \
    AND NOT EXISTS (SELECT 1 FROM pg_depend d WHERE d.classid = 'pg_class'::regclass \
        AND d.objid = c.oid AND d.deptype = 'e')";

const FROM: &str = "pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace";

/// All host tables by name.
///
/// # Errors
/// Those of the database.
pub async fn read(session: &mut Session) -> Result<Vec<Table>> {
    let mut tables = Tables::default();
    let sql = format!(
        "SELECT c.oid::bigint, n.nspname, c.relname, (n.nspname = current_schema())::int, \
         row_security_active(c.oid)::int FROM {FROM} WHERE {HOST} ORDER BY n.nspname, c.relname"
    );
    for row in session.query(&sql, vec![]).await? {
        tables.add(&row)?;
    }
    tables.columns(session).await?;
    tables.keys(session).await?;
    tables.unique(session).await?;
    tables.triggers(session).await?;
    tables.partitions(session).await?;
    Ok(tables.list)
}

#[derive(Default)]
struct Tables {
    list: Vec<Table>,
    by_oid: HashMap<i64, usize>,
}

impl Tables {
    fn add(&mut self, row: &Row) -> Result<()> {
        let (schema, table) = (row.text(1)?, row.text(2)?);
        let name = if row.flag(3)? { table.to_owned() } else { format!("{schema}.{table}") };
        let obstacle = row.flag(4)?.then(|| {
            "row-level security hides rows from this role, so they could not be captured: \
             run `track` as a role with BYPASSRLS, or as the owner without FORCE ROW LEVEL SECURITY"
                .to_owned()
        });
        self.by_oid.insert(row.int(0)?, self.list.len());
        self.list.push(Table {
            name,
            schema: schema.to_owned(),
            table: table.to_owned(),
            obstacle,
            ..Table::default()
        });
        Ok(())
    }

    fn of(&mut self, row: &Row) -> Result<Option<&mut Table>> {
        let at = self.by_oid.get(&row.int(0)?).copied();
        Ok(at.and_then(|at| self.list.get_mut(at)))
    }

    async fn columns(&mut self, session: &mut Session) -> Result<()> {
        // A domain is what it is made of, one or two levels down.
        let sql = format!(
            "SELECT c.oid::bigint, a.attname, format_type(a.atttypid, a.atttypmod), \
             coalesce(nullif(b2.typname, ''), nullif(b.typname, ''), t.typname), a.attnotnull::int, \
             (a.attgenerated <> '')::int, \
             (a.attidentity <> '' OR coalesce(pg_get_expr(e.adbin, e.adrelid), '') LIKE '%(%')::int \
             FROM {FROM} JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 \
                AND NOT a.attisdropped \
             JOIN pg_type t ON t.oid = a.atttypid \
             LEFT JOIN pg_type b ON b.oid = t.typbasetype AND t.typtype = 'd' \
             LEFT JOIN pg_type b2 ON b2.oid = b.typbasetype AND b.typtype = 'd' \
             LEFT JOIN pg_attrdef e ON e.adrelid = c.oid AND e.adnum = a.attnum \
             WHERE {HOST} ORDER BY c.oid, a.attnum"
        );
        for row in session.query(&sql, vec![]).await? {
            let column = TableColumn {
                name: row.text(1)?.to_owned(),
                sql_type: row.text(2)?.to_owned(),
                kind: kind(row.text(3)?),
                not_null: row.flag(4)?,
                generated: row.flag(5)?,
                auto: row.flag(6)? && !row.flag(5)?,
            };
            if let Some(table) = self.of(&row)? {
                table.columns.push(column);
            }
        }
        Ok(())
    }

    /// Primary and foreign keys, a row for each of their columns.
    async fn keys(&mut self, session: &mut Session) -> Result<()> {
        let sql = format!(
            "SELECT c.oid::bigint, k.contype::text, k.oid::bigint, a.attname, \
             coalesce(k.confrelid::bigint, 0), coalesce(f.attname, ''), k.condeferrable::int \
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
            let deferrable = row.flag(6)?;
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

    async fn triggers(&mut self, session: &mut Session) -> Result<()> {
        let sql = format!(
            "SELECT c.oid::bigint, t.tgname FROM {FROM} JOIN pg_trigger t ON t.tgrelid = c.oid \
             AND NOT t.tgisinternal AND t.tgenabled <> 'D' AND t.tgname NOT LIKE 'branchline\\_%' \
             WHERE {HOST} ORDER BY c.oid, t.tgname"
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
            "SELECT c.oid::bigint, quote_ident(pn.nspname) || '.' || quote_ident(p.relname) \
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
