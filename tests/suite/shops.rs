//! Three databases that know nothing of uuids: a shop with integer keys, a warehouse with composed
//! natural keys and link tables, a ship's log with text keys that refer to themselves. What `track`
//! asks for is given to it, people work on two servers, and all end equal.

use crate::support::cli::TestServer;
use crate::support::services::TestDatabase;
use crate::support::sql::Sql;
use crate::support::tree::{Engine, MIXED_AMQP, Mix, POSTGRES_AMQP, SQLITE_SPOOL, Tree};

const MIXES: [Mix; 3] = [POSTGRES_AMQP, SQLITE_SPOOL, MIXED_AMQP];

struct Shop {
    /// Its tables; `{id}` is an integer primary key that the database fills in.
    schema: &'static str,
    /// What the parent gets first.
    base: &'static str,
    /// What `track --all` refuses, and a part of what it says.
    refused: &'static [(&'static str, &'static str)],
    /// With this it takes all.
    track: &'static [&'static str],
    /// What is in it, by what is the same everywhere.
    contents: &'static [&'static str],
}

const SHOP: Shop = Shop {
    schema: "
        CREATE TABLE category (category_id {id}, name VARCHAR(40) NOT NULL UNIQUE);
        CREATE TABLE supplier (supplier_id {id}, company VARCHAR(80) NOT NULL, country VARCHAR(40));
        CREATE TABLE customer (code CHAR(5) PRIMARY KEY, name VARCHAR(80) NOT NULL, city VARCHAR(40));
        CREATE TABLE product (product_id {id}, name VARCHAR(80) NOT NULL,
            category_id INTEGER REFERENCES category, supplier_id INTEGER REFERENCES supplier,
            price NUMERIC(10,2), stock INTEGER NOT NULL DEFAULT 0);
        CREATE TABLE orders (order_id {id}, customer_code CHAR(5) REFERENCES customer,
            ordered_on DATE, note TEXT);
        CREATE TABLE order_line (order_id INTEGER NOT NULL REFERENCES orders ON DELETE CASCADE,
            product_id INTEGER NOT NULL REFERENCES product, quantity INTEGER NOT NULL,
            price NUMERIC(10,2), PRIMARY KEY (order_id, product_id));",
    base: "
        INSERT INTO category (name) VALUES ('Tea'), ('Spice');
        INSERT INTO supplier (company, country) VALUES ('Leaf Ltd', 'IN');
        INSERT INTO customer VALUES ('ALFKI', 'Alfreds', 'Berlin');
        INSERT INTO product (name, category_id, supplier_id, price, stock)
            SELECT 'Assam', c.category_id, s.supplier_id, 4.50, 10 FROM category c, supplier s
            WHERE c.name = 'Tea';",
    refused: &[
        ("category", "name its key with --key category=name"),
        ("orders", "--add-uuid"),
        ("order_line", "column `order_id` refers to `orders`, which is not tracked"),
        ("product", "--key product=COLUMN[,…]"),
        ("supplier", "an integer that means nothing on other servers"),
    ],
    track: &["--all", "--key", "category=name", "--add-uuid"],
    contents: &[
        "SELECT name FROM category ORDER BY 1",
        "SELECT code, name, city FROM customer ORDER BY 1",
        "SELECT p.name, c.name, s.company, p.stock, CAST(p.price * 100 AS INTEGER) FROM product p \
         JOIN category c ON c.category_id = p.category_id \
         JOIN supplier s ON s.supplier_id = p.supplier_id ORDER BY 1",
        "SELECT o.note, c.name, p.name, l.quantity FROM order_line l \
         JOIN orders o ON o.order_id = l.order_id JOIN product p ON p.product_id = l.product_id \
         LEFT JOIN customer c ON c.code = o.customer_code ORDER BY 1, 3",
    ],
};

const WAREHOUSE: Shop = Shop {
    schema: "
        CREATE TABLE site (site CHAR(3) PRIMARY KEY, name VARCHAR(40));
        CREATE TABLE bin (site CHAR(3) NOT NULL REFERENCES site, aisle INTEGER NOT NULL,
            shelf INTEGER NOT NULL, capacity INTEGER, PRIMARY KEY (site, aisle, shelf));
        CREATE TABLE item (sku VARCHAR(20) PRIMARY KEY, name VARCHAR(40));
        CREATE TABLE stock (site CHAR(3) NOT NULL, aisle INTEGER NOT NULL, shelf INTEGER NOT NULL,
            sku VARCHAR(20) NOT NULL REFERENCES item, quantity INTEGER NOT NULL,
            PRIMARY KEY (site, aisle, shelf, sku),
            FOREIGN KEY (site, aisle, shelf) REFERENCES bin ON UPDATE CASCADE);
        CREATE TABLE item_label (sku VARCHAR(20) NOT NULL REFERENCES item,
            label VARCHAR(20) NOT NULL);
        CREATE TABLE movement (movement_id {id}, sku VARCHAR(20) REFERENCES item, quantity INTEGER,
            moved_at VARCHAR(30));",
    base: "
        INSERT INTO site VALUES ('ams', 'Amsterdam');
        INSERT INTO bin VALUES ('ams', 1, 1, 100), ('ams', 1, 2, 50);
        INSERT INTO item VALUES ('A-1', 'bolt'), ('B-2', 'nut');
        INSERT INTO item_label VALUES ('A-1', 'steel');
        INSERT INTO movement (sku, quantity, moved_at) VALUES ('A-1', 5, 'monday');
        INSERT INTO stock VALUES ('ams', 1, 1, 'A-1', 5);",
    refused: &[("movement", "an integer that means nothing on other servers")],
    track: &["--all", "--add-uuid"],
    contents: &[
        "SELECT site, name FROM site ORDER BY 1",
        "SELECT site, aisle, shelf, capacity FROM bin ORDER BY 1, 2, 3",
        "SELECT site, aisle, shelf, sku, quantity FROM stock ORDER BY 1, 2, 3, 4",
        "SELECT sku, name FROM item ORDER BY 1",
        "SELECT sku, label FROM item_label ORDER BY 1, 2",
        "SELECT sku, quantity, moved_at FROM movement ORDER BY 3, 1",
    ],
};

const SHIP: Shop = Shop {
    schema: "
        CREATE TABLE port (code VARCHAR(5) PRIMARY KEY, name VARCHAR(40));
        CREATE TABLE crew (badge VARCHAR(10) PRIMARY KEY, name VARCHAR(40),
            reports_to VARCHAR(10) REFERENCES crew);
        CREATE TABLE voyage (number VARCHAR(12) PRIMARY KEY, from_port VARCHAR(5) REFERENCES port,
            to_port VARCHAR(5) REFERENCES port, previous VARCHAR(12) REFERENCES voyage);
        CREATE TABLE log_entry (voyage VARCHAR(12) NOT NULL REFERENCES voyage ON DELETE CASCADE,
            line INTEGER NOT NULL, officer VARCHAR(10) REFERENCES crew, words TEXT,
            PRIMARY KEY (voyage, line));",
    base: "
        INSERT INTO port VALUES ('NLRTM', 'Rotterdam'), ('SGSIN', 'Singapore');
        INSERT INTO crew VALUES ('c1', 'Ahab', NULL), ('c2', 'Starbuck', 'c1');
        INSERT INTO voyage VALUES ('v1', 'NLRTM', 'SGSIN', NULL);",
    refused: &[],
    track: &["--all"],
    contents: &[
        "SELECT code, name FROM port ORDER BY 1",
        "SELECT badge, name, reports_to FROM crew ORDER BY 1",
        "SELECT number, from_port, to_port, previous FROM voyage ORDER BY 1",
        "SELECT voyage, line, officer, words FROM log_entry ORDER BY 1, 2",
    ],
};

impl Shop {
    /// A tree on this shop, whose parent has got its goods.
    fn tree(&self, mix: Mix) -> Tree {
        self.ask(mix.parent);
        let mut tree =
            Tree::unconnected(mix, "", |nickname, engine| self.database(nickname, engine));
        tree.connect(self.track);
        tree.parent.sql(self.base);
        tree.exchange();
        self.is_equal(&tree, "at the start");
        tree
    }

    fn database(&self, nickname: &str, engine: Engine) -> TestDatabase {
        let database = engine.database(nickname);
        let id = match engine {
            Engine::Postgres => "serial PRIMARY KEY",
            Engine::Sqlite => "INTEGER PRIMARY KEY",
        };
        let sql = Sql::to(&database);
        sql.run(&self.schema.replace("{id}", id)).unwrap();
        sql.close();
        database
    }

    /// `track --all` alone, over a shop that is in use, refuses what it must, and says what to do.
    fn ask(&self, engine: Engine) {
        let database = self.database("asks", engine);
        let server = TestServer::new("asks", database, "spool:spool", "");
        server.sql(self.base);
        server.init();
        let ended = server.run(&["track", "--all"]);
        assert_eq!(ended.code(), i32::from(!self.refused.is_empty()));
        let said = format!("{}{}", ended.stdout, ended.stderr);
        for (class, words) in self.refused {
            let line = said.lines().find(|line| line.starts_with(&format!("refused: `{class}`")));
            assert!(line.is_some_and(|line| line.contains(words)), "{class}: {said}");
        }
        server.track(self.track);
    }

    #[track_caller]
    fn is_equal(&self, tree: &Tree, when: &str) {
        for sql in self.contents {
            let rows = tree.parent.query(sql);
            for server in [&tree.child, &tree.child2] {
                assert_eq!(
                    server.query(sql),
                    rows,
                    "{when}, {:?}, {}: {sql}",
                    tree.mix,
                    server.nickname()
                );
            }
        }
        for server in tree.servers() {
            assert_eq!(server.count("SELECT count(*) FROM @sync_held"), 0, "{when}");
            assert_eq!(server.count("SELECT count(*) FROM @sync_change"), 0, "{when}");
        }
    }
}

#[test]
fn a_shop_with_integer_keys_ends_equal_on_all_servers() {
    for mix in MIXES {
        let tree = SHOP.tree(mix);
        tree.child.transaction(&[
            "INSERT INTO customer VALUES ('BONAP', 'Bon app', 'Marseille')",
            "INSERT INTO orders (customer_code, ordered_on, note) VALUES ('BONAP', '2024-05-01', 'first')",
            "INSERT INTO order_line SELECT o.order_id, p.product_id, 3, 4.5 FROM orders o, product p",
            "UPDATE product SET stock = stock - 3 WHERE name = 'Assam'",
        ]);
        tree.parent.transaction(&[
            "INSERT INTO supplier (company, country) VALUES ('Root & Co', 'ID')",
            "INSERT INTO product (name, category_id, supplier_id, price) SELECT 'Nutmeg', \
             c.category_id, s.supplier_id, 7.25 FROM category c, supplier s \
             WHERE c.name = 'Spice' AND s.company = 'Root & Co'",
            "INSERT INTO orders (customer_code, note) VALUES ('ALFKI', 'second')",
            "INSERT INTO order_line SELECT o.order_id, p.product_id, 1, 7 FROM orders o, product p \
             WHERE p.name = 'Nutmeg'",
        ]);
        tree.exchange();
        SHOP.is_equal(&tree, "after orders on both");
        // The key of a row that others refer to, and a cascade.
        tree.child.sql("UPDATE category SET name = 'Teas' WHERE name = 'Tea'");
        tree.parent.sql("DELETE FROM orders WHERE note = 'second'");
        tree.exchange();
        SHOP.is_equal(&tree, "after a renamed key and a cascade");
        let lines = tree.child2.query(SHOP.contents[3]);
        assert_eq!(lines.len(), 1, "{mix:?}: {lines:?}");
        let products = tree.child2.query(SHOP.contents[2]);
        assert_eq!(products.len(), 2, "{mix:?}: {products:?}");
    }
}

#[test]
fn a_warehouse_with_composed_keys_ends_equal_on_all_servers() {
    for mix in MIXES {
        let tree = WAREHOUSE.tree(mix);
        tree.child.transaction(&[
            "INSERT INTO stock VALUES ('ams', 1, 2, 'B-2', 7)",
            "INSERT INTO item_label VALUES ('B-2', 'brass'), ('B-2', 'small')",
            "INSERT INTO movement (sku, quantity, moved_at) VALUES ('B-2', 7, 'tuesday'), (NULL, NULL, 'x')",
        ]);
        tree.parent.transaction(&[
            "UPDATE bin SET shelf = 9, capacity = 60 WHERE shelf = 1",
            "DELETE FROM item_label WHERE label = 'steel'",
            "UPDATE movement SET quantity = 6 WHERE sku = 'A-1'",
        ]);
        tree.exchange();
        WAREHOUSE.is_equal(&tree, "after work on both");
        tree.child2.sql("UPDATE item_label SET label = 'tiny' WHERE label = 'small'");
        tree.child.sql("UPDATE stock SET quantity = quantity + 1");
        tree.exchange();
        WAREHOUSE.is_equal(&tree, "after more work");
        let moved = "SELECT shelf, quantity FROM stock WHERE sku = 'A-1'";
        assert_eq!(tree.child2.query(moved), tree.parent.query(moved));
        assert_eq!(tree.child2.count("SELECT shelf FROM stock WHERE sku = 'A-1'"), 9, "{mix:?}");
        assert_eq!(tree.child.count("SELECT count(*) FROM item_label"), 2, "{mix:?}");
        assert_eq!(tree.child.count("SELECT count(*) FROM movement"), 3, "{mix:?}");
    }
}

#[test]
fn a_ships_log_with_text_keys_ends_equal_on_all_servers() {
    for mix in MIXES {
        let tree = SHIP.tree(mix);
        tree.child.transaction(&[
            "INSERT INTO crew VALUES ('c3', 'Stubb', 'c2')",
            "INSERT INTO voyage VALUES ('v2', 'SGSIN', 'NLRTM', 'v1')",
            "INSERT INTO log_entry VALUES ('v2', 1, 'c3', 'calm'), ('v2', 2, 'c1', 'a whale')",
        ]);
        tree.parent.transaction(&[
            "INSERT INTO log_entry VALUES ('v1', 1, 'c2', 'fog')",
            "UPDATE crew SET reports_to = 'c2' WHERE badge = 'c1'",
        ]);
        tree.exchange();
        SHIP.is_equal(&tree, "after a day on both");
        // Who reports to whom goes round in a circle; a voyage goes with its log.
        tree.child2.sql("DELETE FROM voyage WHERE number = 'v2'");
        if tree.child.is_sqlite() {
            tree.child.sql("REPLACE INTO port VALUES ('NLRTM', 'Rotterdam Europoort')");
            tree.child.sql("INSERT OR REPLACE INTO log_entry VALUES ('v1', 1, 'c3', 'less fog')");
        } else {
            tree.child.sql("UPDATE port SET name = 'Rotterdam Europoort' WHERE code = 'NLRTM'");
            tree.child.sql("UPDATE log_entry SET officer = 'c3', words = 'less fog' WHERE line = 1 AND voyage = 'v1'");
        }
        tree.exchange();
        SHIP.is_equal(&tree, "after the voyage");
        assert_eq!(tree.parent.texts("SELECT words FROM log_entry"), ["less fog"], "{mix:?}");
        assert_eq!(tree.parent.count("SELECT count(*) FROM voyage"), 1, "{mix:?}");
    }
}
