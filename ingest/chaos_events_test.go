package ingest

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/whence-db/whence"
	"github.com/whence-db/whence/internal/pgcluster"
)

// event is one misfortune. It returns once its direct effects are over.
type event struct {
	name   string
	weight int
	run    func(*chaos)
}

var chaosEvents = []event{
	{"kill", 10, (*chaos).eventKill},
	{"terminate", 2, (*chaos).eventTerminate},
	{"second child", 4, (*chaos).eventSecond},
	{"freeze", 5, (*chaos).eventFreeze},
	{"cut source", 3, func(s *chaos) { s.cut(s.sourceDSN, `true`) }},
	{"cut stream", 3, func(s *chaos) { s.cut(s.sourceDSN, `backend_type = 'walsender'`) }},
	{"cut memory", 3, func(s *chaos) { s.cut(s.memoryDSN, `true`) }},
	{"cut lock", 3, func(s *chaos) { s.cut(s.memoryDSN, `query ~ 'advisory'`) }},
	{"cut writes", 3, func(s *chaos) { s.cut(s.memoryDSN, `state <> 'idle'`) }},
	{"reset source", 2, func(s *chaos) { s.lane.toSource.reset() }},
	{"reset memory", 2, func(s *chaos) { s.lane.toMemory.reset() }},
	{"stall source", 3, func(s *chaos) { s.stall(s.lane.toSource, (*proxy).stall) }},
	{"stall memory", 3, func(s *chaos) { s.stall(s.lane.toMemory, (*proxy).stall) }},
	{"source gone", 2, func(s *chaos) { s.stall(s.lane.toSource, func(p *proxy) { p.halve(false) }) }},
	{"capture gone", 2, func(s *chaos) { s.stall(s.lane.toSource, func(p *proxy) { p.halve(true) }) }},
	{"memory gone", 2, func(s *chaos) { s.stall(s.lane.toMemory, func(p *proxy) { p.halve(false) }) }},
	{"kill source", 4, func(s *chaos) { s.crash(s.lane.source) }},
	{"kill memory", 4, func(s *chaos) { s.crash(s.lane.memory) }},
	{"redefine", 12, (*chaos).eventRedefine},
	{"unregister", 5, (*chaos).eventUnregister},
	{"pause", 2, (*chaos).eventPause},
	{"lose slot", 3, (*chaos).eventLoseSlot},
	{"publication", 5, (*chaos).eventPublication},
	{"alter", 14, (*chaos).eventAlter},
	{"identity", 4, (*chaos).eventIdentity},
	{"recreate source", 1, (*chaos).eventRecreate},
	{"checkpoint", 1, func(s *chaos) { _ = s.own(`checkpoint`) }},
}

// draw chooses an event by its weight.
func (s *chaos) draw() event {
	total := 0
	for _, e := range chaosEvents {
		total += e.weight
	}
	n := s.random.IntN(total)
	for _, e := range chaosEvents {
		if n -= e.weight; n < 0 {
			return e
		}
	}
	panic("unreachable")
}

// wait lets others go on, for up to a time in milliseconds.
func (s *chaos) wait(most int) { time.Sleep(time.Duration(s.random.IntN(most+1)) * time.Millisecond) }

// one returns a running child; nil when there is none.
func (s *chaos) one() *child {
	s.children = slices.DeleteFunc(s.children, func(c *child) bool { return !c.stopped && !c.running() })
	if len(s.children) == 0 {
		return nil
	}
	return s.children[s.random.IntN(len(s.children))]
}

func (s *chaos) eventKill() {
	if c := s.one(); c != nil {
		c.kill()
		s.wait(150)
	}
	s.spawn()
}

func (s *chaos) eventTerminate() {
	if c := s.one(); c != nil {
		c.signal(syscall.SIGTERM)
		select {
		case <-c.ended:
		case <-time.After(waitLimit):
			s.t.Errorf("a child did not end when told to")
			c.kill()
		}
	}
	s.spawn()
}

func (s *chaos) eventSecond() {
	if s.one(); len(s.children) < 3 {
		s.spawn()
	}
}

// eventFreeze stops a child as it is, has another take over, and lets the first
// go on from where it was.
func (s *chaos) eventFreeze() {
	c := s.one()
	if c == nil {
		s.spawn()
		return
	}
	if s.random.IntN(2) == 0 { // amid a copy
		s.eventRedefine()
		s.wait(60)
	}
	c.stopped = true
	c.signal(syscall.SIGSTOP)
	s.spawn()
	s.cut(s.memoryDSN, []string{`query ~ 'advisory'`, `true`}[s.random.IntN(2)])
	time.Sleep(300 * time.Millisecond)
	s.wait(1200)
	c.signal(syscall.SIGCONT)
	c.stopped = false
	s.wait(300)
}

// cut ends connections of the children to a database.
func (s *chaos) cut(dsn, which string) {
	_ = s.admin(dsn, `select pg_terminate_backend(pid) from pg_stat_activity
where datname = current_database() and pid <> pg_backend_pid() and application_name ~ '^whence' and (`+which+`)`)
}

func (s *chaos) stall(p *proxy, how func(*proxy)) {
	how(p)
	s.wait(1500)
	p.resume()
}

func (s *chaos) crash(c *pgcluster.Cluster) {
	c.Kill()
	s.wait(150)
	if err := restarted(s.t.Context(), c); err != nil {
		s.t.Fatal(err)
	}
	s.finishPrepared()
	if len(s.children) == 0 || s.one() == nil { // one that started just then
		s.spawn()
	}
}

func (s *chaos) pick() *chaosTable { return s.tables[s.random.IntN(len(s.tables))] }

func (s *chaos) eventRedefine() { s.register(s.pick(), true) }

func (s *chaos) eventUnregister() {
	t := s.pick()
	if s.registered[t] && len(s.registered) > 1 {
		s.persist("unregister "+t.name, func(ctx context.Context) error {
			err := s.r.UnregisterTable(ctx, tableName(t))
			if isReason(err, "TABLE_NOT_REGISTERED") {
				return nil // it was lost to us that it had succeeded
			}
			return err
		})
		delete(s.registered, t)
		s.wait(200)
		if s.random.IntN(3) == 0 {
			return
		}
	}
	s.register(t, true)
}

func (s *chaos) eventPause() {
	s.persist("pause", func(ctx context.Context) error { _, err := s.r.PauseSource(ctx, "app"); return err })
	s.wait(300)
	s.persist("resume", func(ctx context.Context) error { _, err := s.r.ResumeSource(ctx, "app"); return err })
}

func (s *chaos) eventLoseSlot() {
	for range 20 { // the reader comes back quickly
		_ = s.admin(s.sourceDSN, `select pg_terminate_backend(active_pid) from pg_replication_slots where slot_name = '`+s.slot+`'`)
		if s.admin(s.sourceDSN, `select pg_drop_replication_slot('`+s.slot+`')`) == nil {
			break
		}
	}
	if s.random.IntN(3) == 0 { // someone makes it anew
		s.wait(50)
		_ = s.admin(s.sourceDSN, `select pg_create_logical_replication_slot('`+s.slot+`', 'pgoutput')`)
	}
}

func (s *chaos) eventPublication() {
	t := s.pick()
	only := "only "
	if t.sql == "parts" {
		only = ""
	}
	drop, add := `alter publication `+s.slot+` drop table `+t.sql, `alter publication `+s.slot+` add table `+only+t.sql
	switch s.random.IntN(6) {
	case 0:
		_ = s.own(drop + `; ` + add)
	case 1:
		s.mayFail[t] = true
		_ = s.own(drop)
		s.wait(200)
		_ = s.own(add)
	case 2:
		_ = s.own(`alter publication ` + s.slot + ` set (publish = 'insert')`)
	case 3:
		_ = s.own(`alter publication ` + s.slot + ` set (publish_via_partition_root = false)`)
		s.wait(100)
		_ = s.own(`alter publication ` + s.slot + ` set (publish_via_partition_root = true)`)
	case 4:
		s.mayFailAll()
		_ = s.own(`drop publication ` + s.slot)
	case 5:
		s.mayFail[t] = true
		_ = s.own(drop + `; ` + add + ` where (` + t.keys[0] + ` is not null)`)
	}
}

func (s *chaos) eventAlter() {
	t := s.pick()
	for len(t.alter) == 0 {
		t = s.pick()
	}
	a := t.alter[s.random.IntN(len(t.alter))]
	s.mayFail[t] = s.mayFail[t] || a.fails
	for _, step := range a.steps {
		if err := s.own(step); err != nil {
			s.note("%s: %v", step, err)
		}
		s.wait(200)
	}
	s.mend(t)
}

func (s *chaos) eventIdentity() {
	if t := s.pick(); len(t.identity) > 0 {
		_ = s.own(`alter table ` + t.sql + ` replica identity ` + t.identity[s.random.IntN(len(t.identity))])
	}
}

func (s *chaos) eventRecreate() {
	s.persist("delete the source", func(ctx context.Context) error {
		_, err := s.r.DeleteSource(ctx, "app", false)
		if isReason(err, "SOURCE_NOT_FOUND") {
			return nil
		}
		return err
	})
	s.createSource()
	for _, t := range s.tables {
		if s.registered[t] {
			s.register(t, false)
		}
	}
}

// own runs a statement as the tables' owner, who waits for locks only so long.
func (s *chaos) own(sql string) error {
	var err error
	for range 3 {
		if err = s.admin(s.sourceDSN, sql); err == nil {
			return nil
		}
	}
	return err
}

// admin runs a statement on a connection of its own; it may fail.
func (s *chaos) admin(dsn, sql string) error {
	ctx, cancel := context.WithTimeout(s.t.Context(), 20*time.Second)
	defer cancel()
	conn, err := pgx.Connect(ctx, dsn)
	if err != nil {
		return err
	}
	defer closeConn(ctx, conn)
	if _, err := conn.Exec(ctx, `set lock_timeout = '3s'; set client_min_messages = 'error'`); err != nil {
		return err
	}
	_, err = conn.Exec(ctx, sql)
	return err
}

// finishPrepared ends what writers prepared and could not end.
func (s *chaos) finishPrepared() {
	conn, err := pgx.Connect(s.t.Context(), s.sourceDSN)
	if err != nil {
		s.t.Fatal(err)
	}
	defer closeConn(s.t.Context(), conn)
	rows, err := conn.Query(s.t.Context(), `select gid from pg_prepared_xacts where database = current_database() and prepared < now() - interval '1 second' or $1`, !s.writing)
	if err != nil {
		s.t.Fatal(err)
	}
	ids, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		s.t.Fatal(err)
	}
	for _, id := range ids {
		if _, err := conn.Exec(s.t.Context(), fmt.Sprintf(`%s prepared '%s'`, []string{"commit", "rollback"}[s.random.IntN(2)], id)); err != nil {
			s.note("prepared %s: %v", id, err)
		}
	}
}

func isReason(err error, reason string) bool {
	var e *whence.Error
	return errors.As(err, &e) && e.Reason == reason
}
