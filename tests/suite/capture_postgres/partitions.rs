//! Partitioned tables are one class.

use branchline::catalog::decide::Request;
use branchline::store::track;

use super::bench::{Bench, NOTHING};

#[tokio::test(flavor = "multi_thread")]
async fn partitions_are_one_class_however_they_are_written() {
    let mut bench = Bench::new(
        "CREATE TABLE visit (id int, part int, note text, PRIMARY KEY (id, part)) \
            PARTITION BY LIST (part); \
         CREATE TABLE visit_1 PARTITION OF visit FOR VALUES IN (1); \
         CREATE TABLE visit_2 (note text, gone int, part int NOT NULL, id int NOT NULL); \
         ALTER TABLE visit_2 DROP COLUMN gone; \
         ALTER TABLE visit ATTACH PARTITION visit_2 FOR VALUES IN (2); \
         CREATE TABLE visit_n PARTITION OF visit FOR VALUES IN (3, 5) PARTITION BY LIST (part); \
         CREATE TABLE visit_3 PARTITION OF visit_n FOR VALUES IN (3);",
    )
    .await;
    let sorted = async |bench: &Bench| {
        let mut caught = bench.caught().await;
        caught.sort();
        caught
    };
    assert_eq!(bench.catalog.tracked.len(), 1);
    bench.run("INSERT INTO visit VALUES (1, 1, 'a'), (2, 2, 'b'), (3, 3, 'c')").await;
    assert_eq!(sorted(&bench).await, ["+visit(1,1,a)", "+visit(2,2,b)", "+visit(3,3,c)"]);
    bench
        .run(
            "INSERT INTO visit_1 VALUES (4, 1, 'd'); INSERT INTO visit_2 VALUES ('e', 2, 5); \
             INSERT INTO visit_n VALUES (6, 3, 'f')",
        )
        .await;
    assert_eq!(
        bench.caught().await,
        ["+visit(4,1,d)", "+visit{note,part,id}(e,2,5)", "+visit(6,3,f)"]
    );
    bench.run("UPDATE visit SET part = 2 WHERE id = 1").await;
    assert_eq!(sorted(&bench).await, ["+visit(1,2,a)", "-visit(1,1,a)"]);
    bench
        .run("UPDATE visit SET note = 'z' WHERE id = 1; UPDATE visit_3 SET note = 'y' WHERE id = 3")
        .await;
    assert_eq!(bench.caught().await, ["visit(1,2,a)>(1,2,z)", "visit(3,3,c)>(3,3,y)"]);
    bench.run("TRUNCATE visit_1; TRUNCATE visit").await;
    assert_eq!(
        sorted(&bench).await,
        [
            "-visit(3,3,y)",
            "-visit(4,1,d)",
            "-visit(6,3,f)",
            "-visit{note,part,id}(b,2,2)",
            "-visit{note,part,id}(e,2,5)",
            "-visit{note,part,id}(z,2,1)",
        ]
    );
    // A new partition, and one that leaves.
    bench
        .run(
            "CREATE TABLE visit_4 PARTITION OF visit FOR VALUES IN (4); \
             ALTER TABLE visit DETACH PARTITION visit_1",
        )
        .await;
    let mut session = bench.read().await;
    assert_eq!(track::drifted(&mut session, &bench.catalog).await.unwrap(), ["visit"]);
    session.rollback().await.unwrap();
    bench.track(Request::default()).await;
    bench
        .run("INSERT INTO visit_4 VALUES (9, 4, 'x'); INSERT INTO visit_1 VALUES (8, 1, 'no')")
        .await;
    assert_eq!(bench.caught().await, ["+visit(9,4,x)"]);
    let mut session = bench.read().await;
    assert_eq!(track::drifted(&mut session, &bench.catalog).await.unwrap(), NOTHING);
}
