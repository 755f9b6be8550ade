package main

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"

	v1 "github.com/whence-db/whence/proto/gen/whence/v1"
)

// traces are byte strings to look for in a database's files.
type traces map[string][]byte

// found looks through all files of a database, as they are on disk, and tells which
// of the traces are there and where.
func (w traces) found(t *testing.T, dir string) (seen []string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		b, err := os.ReadFile(path)
		if os.IsNotExist(err) {
			return nil
		}
		for name, trace := range w {
			if bytes.Contains(b, trace) {
				seen = append(seen, name+" in "+filepath.Base(path))
			}
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(seen)
	return seen
}

func (w traces) names(seen []string) (names []string) {
	for name := range w {
		if slices.ContainsFunc(seen, func(s string) bool { return bytes.HasPrefix([]byte(s), []byte(name+" in ")) }) {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// TestErasure purges rows and forgets notes, with their history and after they were
// shown, and then reads the memory database's own files.
func TestErasure(t *testing.T) {
	t.Parallel()
	w := startDev(t)
	agent := w.agent()
	w.exec(t, `create table public.patients (id int primary key, what text not null, who text, colour text)`)
	w.exec(t, `insert into public.patients values (1, 'patient xq11aa has a broken clavicle', 'wh22bb', 'cl33cc'), (2, 'another patient has a cold', 'wh99zz', 'red'),
    (3, 'patient xq77jj has lost a molar', 'wh66kk', 'blue')`)
	w.exec(t, `create table public.wards (id int primary key, what text not null)`)
	w.exec(t, `insert into public.wards values (1, 'ward xq88aa is closed for painting')`)
	w.register(t, &v1.RegisterTableRequest{Table: "public.patients", TextColumns: []string{"what"}, SubjectColumn: "who", AttributeColumns: []string{"colour"},
		OnDelete: v1.OnDelete_ON_DELETE_PURGE})
	w.register(t, &v1.RegisterTableRequest{Table: "public.wards", TextColumns: []string{"what"}, OnDelete: v1.OnDelete_ON_DELETE_PURGE})
	w.registerActions(t, erasedActions)
	w.exec(t, `update public.patients set what = 'patient xq44dd has a mended clavicle' where id = 1`)
	w.execute(t, "patient.paint", `{"id": 1, "colour": "ex11aa"}`)
	w.execute(t, "patient.paint", `{"id": 1, "colour": "cl33cc"}`)
	remembered := w.execute(t, "say", `{"text": "ex22bb would rather sit by the stove"}`)
	var pending v1.ExecuteResponse
	if _, err := agent.keyed(t.Context(), "pending", "ActionService/Execute", &v1.ExecuteRequest{Action: "ward.close", Arguments: object(t, `{"id": 1, "why": "ex33cc"}`)}, &pending); reasonOf(err) != "APPROVAL_PENDING" {
		t.Fatal(err)
	}
	agent.note(t, &v1.RememberRequest{Text: "xq55ee would rather sit by the window", Key: "ky66ff", Subject: "wh77gg",
		Attributes: &structpb.Struct{Fields: map[string]*structpb.Value{"mood": structpb.NewStringValue("md88hh")}}})
	shown := func(text string) {
		eventually(t, showLimit, text, func() error {
			hits := agent.query(t, &v1.QueryRequest{Text: text, Limit: proto.Uint32(1)}).GetHits()
			if len(hits) != 1 || hits[0].GetFreshness().GetState() != fresh {
				return fmt.Errorf("%v", hits)
			}
			return nil
		})
	}
	shown("rather sit by the window")
	all := traces{}
	w.vectorsOf(t, all, `%by the window%`)
	note := agent.note(t, &v1.RememberRequest{Text: "xq99ii would rather sit by the door", Key: "ky66ff", Subject: "wh77gg"})
	for _, text := range []string{"mended clavicle", "rather sit by the door", "ward closed for painting", "lost a molar"} {
		shown(text)
	}
	for _, word := range []string{"xq11aa", "wh22bb", "cl33cc", "xq44dd", "xq55ee", "ky66ff", "wh77gg", "md88hh", "xq99ii", "xq88aa", "xq77jj", "wh66kk", "ex11aa", "ex22bb", "ex33cc"} {
		all[word] = []byte(word)
	}
	w.vectorsOf(t, all, `%clavicle%`, `%by the door%`, `%painting%`, `%molar%`)
	files := w.files(t)
	w.memoryExec(t, `analyze`)
	w.memoryExec(t, `checkpoint`)
	if there := all.names(all.found(t, files)); len(there) != len(all) {
		t.Fatalf("before the erasure only %v of %v can be found: the test would show nothing", there, slices.Sorted(maps.Keys(all)))
	}

	w.exec(t, `delete from public.patients where id = 1`)
	// Erased and entered anew in one transaction, as is often done.
	w.inOne(t, `delete from public.patients where id = 3`, `insert into public.patients values (3, 'a patient without a name', 'wh00', 'grey')`)
	w.exec(t, `truncate public.wards`)
	agent.must(t, "MemoryService/Forget", &v1.ForgetRequest{Key: note.GetRecord().GetKey()}, &v1.ForgetResponse{})
	agent.must(t, "MemoryService/Forget", &v1.ForgetRequest{Key: remembered.GetResult().GetFields()["key"].GetStructValue()}, &v1.ForgetResponse{})
	eventually(t, showLimit, "the rows are gone", func() error {
		for _, text := range []string{"mended clavicle", "ward closed for painting"} {
			for _, h := range agent.query(t, &v1.QueryRequest{Text: text}).GetHits() {
				if bytes.Contains([]byte(h.GetText()), []byte("xq")) {
					return fmt.Errorf("%v", h)
				}
			}
		}
		return nil
	})
	w.memoryExec(t, `analyze`) // else the statistics keep samples of subjects and terms
	w.memoryExec(t, `vacuum (full)`)
	// The slot of the source, which here is in the same cluster, holds on to what the
	// catalogue held until capture has gone by.
	eventually(t, startLimit, "nothing is left", func() error {
		w.exec(t, `insert into public.wards values (2, 'a ward') on conflict (id) do update set what = excluded.what || '.'`)
		w.memoryExec(t, `checkpoint`)
		// And the answer to a question that was under way loses its words in a sweep.
		w.memoryExec(t, `vacuum (full) pg_statistic, whence.answer_hits`)
		w.memoryExec(t, `checkpoint`)
		if left := all.found(t, files); len(left) > 0 {
			return fmt.Errorf("left behind: %v", left)
		}
		return nil
	})
	// What was erased is not restored, and says so.
	var undone v1.UndoResponse
	if err := agent.call(t.Context(), "ActionService/Undo", &v1.UndoRequest{Id: remembered.GetId()}, &undone); reasonOf(err) != "UNDO_CONFLICT" {
		t.Errorf("undoing what was erased: %v", err)
	}
	if still := (traces{"other": []byte("wh99zz")}).found(t, files); len(still) == 0 {
		t.Error("the other row must still be there")
	}
}

const erasedActions = `
version: 1
actions:
  - name: patient.paint
    description: x
    tier: TIER_REVERSIBLE
    parameters: [{name: id, type: PARAMETER_TYPE_INTEGER, required: true}, {name: colour, type: PARAMETER_TYPE_TEXT, required: true}]
    row: {table: app.public.patients, operation: ROW_OPERATION_UPDATE, where: {id: {parameter: id}}, set: {colour: {parameter: colour}}, columns: [colour, what]}
  - name: ward.close
    description: x
    tier: TIER_IRREVERSIBLE
    irreversibleBecause: x
    parameters: [{name: id, type: PARAMETER_TYPE_INTEGER, required: true}, {name: why, type: PARAMETER_TYPE_TEXT, required: true}]
    row: {table: app.public.wards, operation: ROW_OPERATION_DELETE, where: {id: {parameter: id}}, columns: [what]}
  - name: say
    description: x
    tier: TIER_REVERSIBLE
    parameters: [{name: text, type: PARAMETER_TYPE_TEXT, required: true}]
    memory: {operation: MEMORY_OPERATION_REMEMBER, fields: {text: {parameter: text}}}
`

// execute runs an action under a key of its own.
func (w *running) execute(t *testing.T, name, arguments string) *v1.Execution {
	t.Helper()
	var out v1.ExecuteResponse
	if _, err := w.agent().keyed(t.Context(), uuid.NewString(), "ActionService/Execute", &v1.ExecuteRequest{Action: name, Arguments: object(t, arguments)}, &out); err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return out.GetExecution()
}

// inOne runs statements in one transaction of the source.
func (w *running) inOne(t *testing.T, statements ...string) {
	t.Helper()
	err := pgx.BeginFunc(t.Context(), w.source, func(tx pgx.Tx) error {
		for _, sql := range statements {
			if _, err := tx.Exec(t.Context(), sql); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

func (w *running) memoryExec(t *testing.T, sql string) {
	t.Helper()
	if _, err := w.memory.Exec(t.Context(), sql); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
}

// vectorsOf adds the vectors of chunks as they are on disk: half-precision numbers,
// low byte first.
func (w *running) vectorsOf(t *testing.T, all traces, like ...string) {
	t.Helper()
	rows, err := w.memory.Query(t.Context(), `
select distinct c.id, halfvec_send(v.embedding) from whence.chunks c join whence.vectors v on v.digest = c.digest
where c.text like any($1) and v.embedding is not null`, like)
	if err != nil {
		t.Fatal(err)
	}
	defer rows.Close()
	for rows.Next() {
		var id int64
		var sent []byte
		if err := rows.Scan(&id, &sent); err != nil {
			t.Fatal(err)
		}
		v := sent[4:] // after the number of dimensions and a spare field
		stored := make([]byte, len(v))
		for i := 0; i+1 < len(v); i += 2 {
			binary.LittleEndian.PutUint16(stored[i:], binary.BigEndian.Uint16(v[i:]))
		}
		all[fmt.Sprintf("vector of chunk %d", id)] = stored
	}
	if err := rows.Err(); err != nil {
		t.Fatal(err)
	}
}

// files is the folder of the memory database's files.
func (w *running) files(t *testing.T) string {
	t.Helper()
	var dir, oid string
	err := w.memory.QueryRow(t.Context(), `
select current_setting('data_directory'), oid::text from pg_database where datname = current_database()`).Scan(&dir, &oid)
	if err != nil {
		t.Fatal(err)
	}
	return filepath.Join(dir, "base", oid)
}
