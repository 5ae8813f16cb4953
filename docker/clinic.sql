-- A host's tables, to try the tree with: integer keys that are local, uuids that are not.
CREATE TABLE patient (
    patient_id serial PRIMARY KEY,
    uuid       varchar(38) NOT NULL UNIQUE,
    name       text NOT NULL,
    born       date
);
CREATE TABLE visit (
    visit_id   serial PRIMARY KEY,
    uuid       varchar(38) NOT NULL UNIQUE,
    patient_id integer NOT NULL REFERENCES patient,
    started_at timestamptz NOT NULL DEFAULT now(),
    note       text
);
SELECT setval('patient_patient_id_seq', :first + 1), setval('visit_visit_id_seq', :first + 1);
