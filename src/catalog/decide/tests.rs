use super::*;
use crate::catalog::{ForeignKey, TableColumn};

/// A table from a line: `id int auto pk, uuid text unique, person_id int ->person.id, …`.
fn table(name: &str, columns: &str) -> Table {
    let mut table = Table { name: name.into(), table: name.into(), ..Table::default() };
    for part in columns.split(", ") {
        let mut words = part.split(' ');
        let (column, kind) = (words.next().unwrap(), words.next().unwrap());
        let mut definition = TableColumn {
            name: column.into(),
            sql_type: kind.into(),
            kind: match kind {
                "int" => TypeKind::Int,
                "uuid" => TypeKind::Uuid,
                "float" => TypeKind::Float,
                _ => TypeKind::Text,
            },
            not_null: true,
            ..TableColumn::default()
        };
        for word in words {
            match word {
                "auto" => definition.auto = true,
                "constant" => definition.constant = true,
                "null" => definition.not_null = false,
                "pk" => table.primary_key.push(column.into()),
                "unique" => table.unique.push(vec![column.into()]),
                word => {
                    let target = word.strip_prefix("->").unwrap_or_else(|| panic!("{word}"));
                    table.foreign_keys.push(foreign(&[column], target));
                }
            }
        }
        table.columns.push(definition);
    }
    table
}

/// A foreign key to `table.column` or `table.one+two`.
fn foreign(columns: &[&str], target: &str) -> ForeignKey {
    let (target, others) = target.split_once('.').unwrap();
    ForeignKey {
        columns: columns.iter().map(|name| (*name).to_owned()).collect(),
        target: target.into(),
        target_columns: others.split('+').map(str::to_owned).collect(),
        deferrable: false,
        acts: false,
    }
}

fn all() -> Request {
    Request { all: true, ..Request::default() }
}

/// A class as a line: its key, then its references.
fn line(decision: &Decision, name: &str) -> String {
    let class = decision.classes.iter().find(|class| &*class.name == name);
    let class = class.unwrap_or_else(|| panic!("{name}: {:?}", decision.refusals));
    let key: Vec<&str> = class.key.iter().map(|n| &*class.columns[*n].name).collect();
    let mut text = key.join("+");
    for slot in class.slots() {
        let column = &class.columns[slot.column].name;
        text.push_str(&format!(" {column}->{}", slot.reference.target));
        if let Some(when) = &slot.reference.when {
            text.push_str(&format!("?{when}"));
        }
    }
    text
}

fn refusal(decision: &Decision, name: &str) -> String {
    assert!(decision.classes.iter().all(|class| &*class.name != name), "{name} is tracked");
    let texts = decision.refusals.iter().filter(|remark| remark.class == name);
    texts.map(|remark| remark.text.as_str()).collect::<Vec<_>>().join("\n")
}

fn warning(decision: &Decision, name: &str) -> String {
    let texts = decision.warnings.iter().filter(|remark| remark.class == name);
    texts.map(|remark| remark.text.as_str()).collect::<Vec<_>>().join("\n")
}

fn clinic() -> Vec<Table> {
    vec![
        table("person", "person_id int auto pk, uuid text unique, name text null"),
        table("patient", "patient_id int pk ->person.person_id, note text null"),
        table("users", "user_id int auto pk, uuid text unique, person_id int ->person.person_id"),
        table("role", "role text pk, uuid text unique"),
        table("user_role", "user_id int pk ->users.user_id, role text pk ->role.role"),
        table("tag_map", "person_id int ->person.person_id, word text"),
        table("encounter", "id int auto pk, uuid text unique, patient_id int ->patient.patient_id"),
    ]
}

#[test]
fn keys_are_natural_or_references_or_uuids() {
    let decision = decide(&clinic(), &all());
    assert_eq!(decision.refusals, []);
    assert_eq!(line(&decision, "person"), "uuid");
    assert_eq!(line(&decision, "patient"), "patient_id patient_id->person");
    assert_eq!(line(&decision, "users"), "uuid person_id->person");
    assert_eq!(line(&decision, "role"), "role");
    assert_eq!(line(&decision, "user_role"), "user_id+role user_id->users");
    assert_eq!(line(&decision, "encounter"), "uuid patient_id->patient");
    let class = |name: &str| decision.classes.iter().find(|class| &*class.name == name).unwrap();
    assert_eq!((class("person").surrogate, class("person").local.as_slice()), (Some(0), &[0][..]));
    assert_eq!((class("patient").surrogate, class("patient").local.as_slice()), (None, &[0][..]));
    assert!(class("tag_map").set);
    assert_eq!(line(&decision, "tag_map"), "person_id+word person_id->person");
    assert!(warning(&decision, "tag_map").contains("equal rows count as one"));
}

#[test]
fn an_integer_key_without_a_uuid_is_refused_with_the_ways_out() {
    let tables = [
        table("shop", "id int auto pk, code text unique"),
        table("till", "id int auto pk, label text"),
        table("heap", "a text null"),
    ];
    let decision = decide(&tables, &all());
    assert!(refusal(&decision, "shop").contains("--key shop=code"));
    assert!(refusal(&decision, "till").contains("--key till=COLUMN"));
    assert!(refusal(&decision, "till").contains("--add-uuid"));
    assert!(refusal(&decision, "heap").contains("neither a primary key nor a uuid"));

    let keys = HashMap::from([("shop".to_owned(), vec!["code".to_owned()])]);
    let asked = Request { keys, add_uuid: true, ..all() };
    let heap = decide(&tables, &asked);
    assert!(refusal(&heap, "heap").contains("give it an INTEGER PRIMARY KEY"));
    let decision = decide(&tables, &Request { fills_uuid: true, ..asked });
    assert_eq!(line(&decision, "shop"), "code");
    assert_eq!(line(&decision, "till"), "uuid");
    assert_eq!(
        decision.actions,
        [Action::AddUuid { class: "heap".into() }, Action::AddUuid { class: "till".into() }]
    );
    // `--key` with the integer itself: it travels, and so do those that point at it.
    let tables = [
        table("country", "iso int pk, name text"),
        table("city", "name text pk, iso int ->country.iso"),
        table("flag", "iso int pk ->country.iso, colours text"),
    ];
    let keys = HashMap::from([("country".to_owned(), vec!["iso".to_owned()])]);
    let decision = decide(&tables, &Request { keys, ..all() });
    assert_eq!(line(&decision, "country"), "iso");
    assert_eq!(line(&decision, "city"), "name");
    assert_eq!(line(&decision, "flag"), "iso");
    let again = decide(&tables, &Request { tracked: decision.classes.clone(), ..all() });
    assert_eq!(again.classes, decision.classes);
    let keys = HashMap::from([("country".to_owned(), vec!["code".to_owned()])]);
    let decision = decide(&tables, &Request { keys, ..all() });
    assert!(refusal(&decision, "country").contains("`code`, which are not all columns"));
}

#[test]
fn a_uuid_is_filled_and_made_unique_where_it_is_not() {
    let tables = [
        table("a", "id int auto pk, uuid text null"),
        table("b", "id int auto pk, guid uuid unique, other text"),
        table("c", "id int auto pk, guid uuid null unique"),
    ];
    let decision = decide(&tables, &all());
    assert_eq!(
        decision.actions,
        [
            Action::FillUuid { class: "a".into(), column: "uuid".into() },
            Action::MakeUnique { class: "a".into(), columns: vec!["uuid".into()] },
        ]
    );
    assert_eq!(line(&decision, "b"), "guid");
    assert!(!refusal(&decision, "c").is_empty(), "NULLs in it mean something to the host");
    let keys = HashMap::from([("c".to_owned(), vec!["guid".to_owned(), "id".to_owned()])]);
    let decision = decide(&tables, &Request { keys, ..all() });
    assert_eq!(decision.actions.len(), 2, "the key of `c` holds a unique column");
    assert!(warning(&decision, "c").contains("NULL"));
}

#[test]
fn columns_that_look_like_references_are_refused_until_they_are_explained() {
    let mut tables = clinic();
    tables.push(table(
        "visit",
        "visit_id int auto pk, uuid text unique, user_id int null, external_id int, person int",
    ));
    let decision = decide(&tables, &all());
    let text = refusal(&decision, "visit");
    assert!(text.contains("`user_id`, `external_id` look"), "{text}");
    assert!(text.contains("column = \"user_id\"\n  target = \"users\""), "{text}");
    assert!(text.contains("[[plain]]"), "{text}");
    assert!(text.contains("--assume-plain"), "{text}");

    let request = Request {
        references: vec![NewReference {
            table: "visit".into(),
            column: "user_id".into(),
            target: "users".into(),
            when: None,
        }],
        plain: vec![("visit".into(), "external_id".into())],
        ..all()
    };
    let decision = decide(&tables, &request);
    assert_eq!(line(&decision, "visit"), "uuid user_id->users");

    let decision = decide(&tables, &Request { assume_plain: true, ..all() });
    assert_eq!(line(&decision, "visit"), "uuid");
    assert!(warning(&decision, "visit").contains("`user_id` is taken as a plain number"));
    // Brought up to date without the option, it stays as it was.
    let again = Request { tracked: decision.classes.clone(), ..Request::default() };
    let again = decide(&tables, &again);
    assert_eq!(again.refusals, []);
    assert_eq!(again.classes, decision.classes);
    // A column that came since is looked at anew.
    tables.last_mut().unwrap().columns.push(TableColumn {
        name: "encounter_id".into(),
        kind: TypeKind::Int,
        ..TableColumn::default()
    });
    let request = Request { tracked: decision.classes.clone(), ..Request::default() };
    let text = refusal(&decide(&tables, &request), "visit");
    assert!(text.contains("`encounter_id` looks") && !text.contains("`user_id`"), "{text}");
}

#[test]
fn a_given_key_is_kept_when_the_class_is_brought_up_to_date() {
    let tables = [table("shop", "id int auto pk, code text unique, uuid text unique")];
    let keys = HashMap::from([("shop".to_owned(), vec!["code".to_owned()])]);
    let first = decide(&tables, &Request { keys, ..all() });
    let again = decide(&tables, &Request { tracked: first.classes.clone(), ..all() });
    assert_eq!(again.classes, first.classes);
    // A uuid as well: an index that the host dropped is made again.
    let tables = [table("shop", "id int auto pk, code text unique, uuid text unique")];
    let first = decide(&tables, &all());
    assert_eq!(line(&first, "shop"), "uuid");
    let tables = [table("shop", "id int auto pk, code text, uuid text")];
    let again = decide(&tables, &Request { tracked: first.classes, ..all() });
    assert_eq!(again.actions.len(), 1);
}

#[test]
fn a_namesake_of_a_reference_is_warned_of() {
    let mut tables = clinic();
    tables[0] =
        table("person", "person_id int auto pk, uuid text unique, creator int ->users.user_id");
    tables.push(table("note", "note_id int auto pk, uuid text unique, creator int"));
    let decision = decide(&tables, &all());
    assert_eq!(line(&decision, "note"), "uuid");
    assert!(warning(&decision, "note").contains("`creator` refers to `users` in other tables"));
    let plain = vec![("note".to_owned(), "creator".to_owned())];
    let decision = decide(&tables, &Request { plain, ..all() });
    assert_eq!(warning(&decision, "note"), "");
}

#[test]
fn a_reference_may_depend_on_the_row() {
    let tables = [
        table("kind", "id int auto pk, uuid text unique"),
        table("place", "id int auto pk, uuid text unique"),
        table("attribute", "id int auto pk, uuid text unique, value text"),
    ];
    let one = |target: &str, when: Option<&str>| NewReference {
        table: "attribute".into(),
        column: "value".into(),
        target: target.into(),
        when: when.map(str::to_owned),
    };
    let both = vec![one("kind", Some("a")), one("place", Some("b"))];
    let decision = decide(&tables, &Request { references: both, ..all() });
    assert_eq!(line(&decision, "attribute"), "uuid value->kind?a value->place?b");
    let mixed = vec![one("kind", None), one("place", Some("b"))];
    let decision = decide(&tables, &Request { references: mixed, ..all() });
    assert!(refusal(&decision, "attribute").contains("each needs its `when`"));
    let unknown = vec![one("planet", None)];
    let decision = decide(&tables, &Request { references: unknown, ..all() });
    assert!(refusal(&decision, "attribute").contains("`planet`, which is no table here"));
    let keys = HashMap::from([("attribute".to_owned(), vec!["value".to_owned()])]);
    let when = vec![one("kind", Some("a"))];
    let decision = decide(&tables, &Request { references: when, keys, ..all() });
    assert!(refusal(&decision, "attribute").contains("cannot be part of a key"));
}

#[test]
fn references_to_untracked_tables_are_refused_or_added() {
    let tables = clinic();
    let names = vec!["encounter".to_owned(), "role".to_owned()];
    let decision = decide(&tables, &Request { names, ..Request::default() });
    assert!(
        refusal(&decision, "encounter")
            .contains("`patient`, which is not tracked: track it too, or use --all")
    );
    assert_eq!(line(&decision, "role"), "role");
    let skipped = BTreeSet::from(["person".to_owned(), "role".to_owned()]);
    let decision = decide(&tables, &Request { skipped, ..all() });
    assert_eq!(line(&decision, "person"), "uuid");
    assert!(warning(&decision, "person").contains("because others refer to it"));
    assert!(decision.classes.iter().all(|class| &*class.name != "role"));
    let names = vec!["planet".to_owned()];
    let decision = decide(&tables, &Request { names, ..Request::default() });
    assert!(refusal(&decision, "planet").contains("no such table"));
}

#[test]
fn who_refers_to_a_refused_class_is_refused() {
    let mut tables = clinic();
    tables[0].obstacle = Some("rows are hidden".into());
    let decision = decide(&tables, &all());
    assert_eq!(decision.classes.len(), 1, "only `role` stands alone");
    assert!(
        refusal(&decision, "encounter").contains("`patient`, which is not tracked for the reason")
    );
}

#[test]
fn a_surrogate_needs_a_source_of_ids() {
    let tables = [table("note", "note_id int pk, uuid text unique")];
    let decision = decide(&tables, &all());
    assert!(refusal(&decision, "note").contains("[[class]]\n  name = \"note\"\n  id = "));
    let id_sources = HashMap::from([("note".to_owned(), "nextval('s')".to_owned())]);
    let decision = decide(&tables, &Request { id_sources, ..all() });
    assert_eq!(decision.classes[0].id_source.as_deref(), Some("nextval('s')"));
}

#[test]
fn keys_to_other_columns_mean_what_those_mean() {
    let mut line_table = table("line", "order_id int pk ->orders.id, no int pk, uuid text unique");
    line_table.unique.push(vec!["order_id".into(), "no".into()]);
    let mut parcel = table(
        "parcel",
        "id int auto pk, uuid text unique, order_id int, no int, code text ->orders.code",
    );
    parcel.foreign_keys.push(foreign(&["order_id", "no"], "line.order_id+no"));
    let tables = [
        table("orders", "id int auto pk, uuid text unique, code text unique"),
        line_table,
        parcel,
        table("profile", "id int auto pk, uuid text unique, owner int unique ->orders.id"),
        table("badge", "id int auto pk, uuid text unique, whose int ->profile.owner"),
    ];
    let decision = decide(&tables, &all());
    assert_eq!(decision.refusals, []);
    assert_eq!(line(&decision, "line"), "order_id+no order_id->orders");
    assert_eq!(line(&decision, "parcel"), "uuid order_id->orders");
    assert_eq!(line(&decision, "badge"), "uuid whose->orders");
}

#[test]
fn of_several_declared_targets_the_subclass_is_taken() {
    let mut tables = clinic();
    let mut visit = table("visit", "id int auto pk, uuid text unique, patient_id int");
    visit.foreign_keys.push(foreign(&["patient_id"], "person.person_id"));
    visit.foreign_keys.push(foreign(&["patient_id"], "patient.patient_id"));
    tables.push(visit.clone());
    assert_eq!(line(&decide(&tables, &all()), "visit"), "uuid patient_id->patient");
    visit.foreign_keys.reverse();
    *tables.last_mut().unwrap() = visit;
    assert_eq!(line(&decide(&tables, &all()), "visit"), "uuid patient_id->patient");
}

#[test]
fn keys_that_cannot_be_worked_out_are_refused() {
    let tables = [
        table("self", "id int pk ->self.id"),
        table("a", "id int pk ->b.id"),
        table("b", "id int pk ->a.id"),
        table("f", "x float pk"),
    ];
    let decision = decide(&tables, &all());
    for name in ["self", "a", "b"] {
        assert!(refusal(&decision, name).contains("depends on itself"), "{name}");
    }
    assert!(refusal(&decision, "f").contains("binary float"));
}

#[test]
fn a_composed_key_that_the_database_numbers_is_warned_of() {
    let tables = [table("event", "id int auto pk, day text pk, uuid text unique")];
    let decision = decide(&tables, &all());
    assert_eq!(line(&decision, "event"), "id+day");
    assert!(warning(&decision, "event").contains("--key event=uuid"));
    let keys = HashMap::from([("event".to_owned(), vec!["uuid".to_owned()])]);
    let decision = decide(&tables, &Request { keys, ..all() });
    assert_eq!(line(&decision, "event"), "uuid");
}

#[test]
fn the_configuration_is_checked_against_the_tables() {
    let tables = [table("role", "role text pk")];
    let request = Request {
        plain: vec![("role".into(), "x".into()), ("nothing".into(), "x".into())],
        ..all()
    };
    let decision = decide(&tables, &request);
    assert!(refusal(&decision, "role").contains("the column `x`, which it does not have"));
    assert!(warning(&decision, "nothing").contains("no such table"));
}

#[test]
fn a_key_with_a_constant_default_is_numbered_behind_the_highest_with_a_warning() {
    let request = Request { all: true, ..Request::default() };
    let decision = decide(&[table("note", "note_id int constant pk, uuid text unique")], &request);
    assert_eq!(decision.refusals, []);
    let source = decision.classes[0].id_source.as_deref().unwrap();
    assert!(source.contains("max(\"note_id\")") && source.contains("row_number()"), "{source}");
    assert_eq!(decision.warnings.len(), 1);
    let decision = decide(&[table("note", "note_id int pk, uuid text unique")], &request);
    assert!(refusal(&decision, "note").contains("[[class]]"));
}
