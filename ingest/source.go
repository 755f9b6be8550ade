package ingest

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"regexp"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/whence-db/whence"
	"github.com/whence-db/whence/cdc"
	"github.com/whence-db/whence/internal/pg"
)

// SourceState is what capture of a source is doing.
type SourceState string

const (
	// SourceConnecting has not streamed yet, or is trying again after an error.
	SourceConnecting SourceState = "CONNECTING"
	// SourceStreaming follows the source.
	SourceStreaming SourceState = "STREAMING"
	// SourcePaused was paused by an operator.
	SourcePaused SourceState = "PAUSED"
	// SourceBroken waits for an operator; Error says what to do.
	SourceBroken SourceState = "BROKEN"
	// SourceDeleting is being removed.
	SourceDeleting SourceState = "DELETING"
)

// Source is a captured database.
type Source struct {
	ID                int32
	Name              string
	State             SourceState
	Error             string // why it is broken or trying again
	Slot, Publication string
	SystemID          string        // of the cluster; empty until the slot is made
	LSN               whence.LSN    // everything committed before it is applied; zero until the slot is made
	CommitTime        time.Time     // of the last transaction applied, the source's clock; zero: none
	CaughtUpAt        time.Time     // every commit up to then is applied, the memory database's clock; zero: not known
	Lag               time.Duration // now minus CaughtUpAt; negative: not known
	LagBytes          int64         // negative: not known
	ApplyRate         float64       // changes a second, over the last 10 to 20 seconds of capture; negative: not known
	RetainedWAL       int64         // bytes of log that the slot keeps on the source; negative: not known
	SafeWAL           int64         // bytes that may yet be written before the source gives the slot up; negative: without bound, or not known
	Warning           string        // what to do before that; empty while there is no danger
	Tables            int
	CreateTime        time.Time

	secrets  secrets
	paused   bool
	retrying bool
	deleting bool
	timeline int32 // of the cluster, as it was captured last

	healthAge time.Duration // since somebody told how the slot is
	awaits    string        // whose transactions the copying of tables waits for
}

const selectSources = `
select s.id, s.name, coalesce(s.error, ''), s.slot, s.publication, coalesce(s.system_id, ''), c.lsn, c.commit_time,
    c.caught_up_at, coalesce(extract(epoch from clock_timestamp() - c.caught_up_at), -1)::float8, coalesce(c.lag_bytes, -1),
    coalesce(c.retained_wal, -1), coalesce(c.safe_wal, -1), coalesce(c.warning, ''), coalesce(` + applyRate + `, -1),
    coalesce(extract(epoch from clock_timestamp() - c.lag_at), -1)::float8,
    coalesce(extract(epoch from clock_timestamp() - c.health_at), -1)::float8, c.health_at, coalesce(c.awaits, ''),
    (select count(*) from whence.tables t where t.source_id = s.id and t.state <> 'UNREGISTERING'),
    s.created_at, s.dsn_env, s.dsn_sealed, s.paused, s.retrying, s.deleting, coalesce(s.timeline, 0)
from whence.sources s left join whence.checkpoints c on c.source_id = s.id
where @name = '' or s.name = @name
order by s.name`

func readSources(ctx context.Context, q querier, name string) ([]Source, error) {
	rows, err := q.Query(ctx, selectSources, pgx.NamedArgs{"name": name})
	if err != nil {
		return nil, fmt.Errorf("read sources: %w", pg.Translate(err))
	}
	out, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (s Source, err error) {
		var commit, caught, told *time.Time
		var lag, lagAge, healthAge float64
		err = row.Scan(&s.ID, &s.Name, &s.Error, &s.Slot, &s.Publication, &s.SystemID, &s.LSN, &commit,
			&caught, &lag, &s.LagBytes, &s.RetainedWAL, &s.SafeWAL, &s.Warning, &s.ApplyRate,
			&lagAge, &healthAge, &told, &s.awaits, &s.Tables, &s.CreateTime, &s.secrets.env, &s.secrets.sealed, &s.paused, &s.retrying, &s.deleting, &s.timeline)
		s.ageHealth(lagAge, healthAge, told)
		s.Lag = -1
		if commit != nil {
			s.CommitTime = *commit
		}
		if caught != nil {
			s.CaughtUpAt, s.Lag = *caught, max(0, time.Duration(lag*float64(time.Second)))
		}
		switch {
		case s.deleting:
			s.State = SourceDeleting
		case s.paused:
			s.State = SourcePaused
		case s.Error != "" && !s.retrying:
			s.State = SourceBroken
		case s.Error != "" || s.LSN == 0:
			s.State = SourceConnecting
		default:
			s.State = SourceStreaming
		}
		return s, err
	})
	if err != nil {
		return nil, fmt.Errorf("read sources: %w", pg.Translate(err))
	}
	return out, nil
}

// ListSources returns every source, by name.
func (r *Registry) ListSources(ctx context.Context) ([]Source, error) {
	return readSources(ctx, r.pool, "")
}

// GetSource returns one source; SOURCE_NOT_FOUND when there is none of that name.
func (r *Registry) GetSource(ctx context.Context, name string) (Source, error) {
	return findSource(ctx, r.pool, name)
}

func findSource(ctx context.Context, q querier, name string) (Source, error) {
	if name != "" {
		found, err := readSources(ctx, q, name)
		if err != nil {
			return Source{}, err
		}
		if len(found) == 1 {
			return found[0], nil
		}
	}
	all, err := readSources(ctx, q, "")
	if err != nil {
		return Source{}, err
	}
	there := "there is none yet"
	if len(all) > 0 {
		names := make([]string, len(all))
		for i, s := range all {
			names[i] = s.Name
		}
		there = "there are: " + strings.Join(names, ", ")
	}
	return Source{}, refuse(whence.ErrNotFound, "SOURCE_NOT_FOUND", fmt.Sprintf("there is no source %q; %s", name, there))
}

var sourceName = regexp.MustCompile(`^[a-z][a-z0-9_-]{0,62}$`)

const insertSource = `
insert into whence.sources (name, dsn_env, dsn_sealed, slot, publication)
values (@name, @env, @sealed, @slot, @slot)`

// CreateSource begins to capture a database. Exactly one of dsn and dsnEnv, the
// name of an environment variable that holds the dsn, is given. The database is
// asked at once whether it can be captured; its slot is made by the process
// that captures it.
func (r *Registry) CreateSource(ctx context.Context, name, dsn, dsnEnv string) (Source, error) {
	switch {
	case !sourceName.MatchString(name):
		return Source{}, whence.Invalid("name", "NAME_INVALID", fmt.Sprintf(
			"%q cannot name a source: use a lower-case letter and then at most 62 letters, digits, _ or -", name))
	case name == "whence":
		return Source{}, whence.Invalid("name", "NAME_RESERVED", `the name "whence" belongs to the built-in tables: choose another`)
	case (dsn == "") == (dsnEnv == ""):
		return Source{}, whence.Invalid("dsn", "DSN_REQUIRED", "give either dsn or dsnEnv")
	}
	exists := refuse(whence.ErrExists, "SOURCE_EXISTS", fmt.Sprintf("the source %q is there already: choose another name, or delete it first", name))
	var unknown *whence.Error
	if _, err := r.GetSource(ctx, name); err == nil {
		return Source{}, exists
	} else if !errors.As(err, &unknown) || unknown.Reason != "SOURCE_NOT_FOUND" {
		return Source{}, err
	}
	s := secrets{sealed: r.seal.Seal(sealPurpose+" "+name, []byte(dsn))}
	if dsnEnv != "" {
		s = secrets{env: &dsnEnv}
	}
	dsn, err := r.dsn(name, s)
	if err != nil {
		return Source{}, err
	}
	if err := checkSource(ctx, name, dsn); err != nil {
		return Source{}, err
	}
	err = pg.InTx(ctx, r.pool, func(tx pgx.Tx) error {
		args := pgx.NamedArgs{"name": name, "env": s.env, "sealed": s.sealed, "slot": slotName(name)}
		if _, err := tx.Exec(ctx, insertSource, args); err != nil {
			return err
		}
		_, err := tx.Exec(ctx, announce)
		return err
	})
	if errors.Is(err, whence.ErrExists) {
		return Source{}, exists
	}
	if err != nil {
		return Source{}, fmt.Errorf("create source: %w", err)
	}
	return r.GetSource(ctx, name)
}

func checkSource(ctx context.Context, name, dsn string) error {
	conn, err := connect(ctx, name, dsn)
	if err != nil {
		return err
	}
	defer closeConn(ctx, conn)
	ctx, cancel := context.WithTimeout(ctx, connectTimeout)
	defer cancel()
	return cdc.CheckServer(ctx, conn)
}

// slotName returns a name that no earlier source of that name had: what is left
// of one must never be taken for this one's.
func slotName(source string) string {
	var b [4]byte
	_, _ = rand.Read(b[:]) // never fails: it ends the program instead
	base := strings.ReplaceAll(source, "-", "_")
	return "whence_" + base[:min(len(base), 47)] + "_" + hex.EncodeToString(b[:])
}

const (
	pauseSource  = `update whence.sources set paused = true where name = @name and not deleting`
	resumeSource = `
update whence.sources set paused = false, error = null, retrying = false, elsewhere = false,
    system_id = case when not elsewhere then system_id end
where name = @name and not deleting`
)

// PauseSource stops the capture of a source; its slot stays and keeps log on the source.
func (r *Registry) PauseSource(ctx context.Context, name string) (Source, error) {
	return r.changeSource(ctx, name, pauseSource)
}

// ResumeSource lets capture go on, also after it was broken. Where it was broken
// because the connection string leads to another cluster, that one is taken: its
// rows are compared with what is stored.
func (r *Registry) ResumeSource(ctx context.Context, name string) (Source, error) {
	return r.changeSource(ctx, name, resumeSource)
}

func (r *Registry) changeSource(ctx context.Context, name, sql string) (Source, error) {
	s, err := r.GetSource(ctx, name)
	if err != nil {
		return Source{}, err
	}
	if s.deleting {
		return Source{}, deletingError(name)
	}
	err = pg.InTx(ctx, r.pool, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, sql, pgx.NamedArgs{"name": name}); err != nil {
			return err
		}
		_, err := tx.Exec(ctx, announce)
		return err
	})
	if err != nil {
		return Source{}, fmt.Errorf("change source: %w", err)
	}
	return r.GetSource(ctx, name)
}

func deletingError(name string) *whence.Error {
	return &whence.Error{Kind: whence.ErrPrecondition, Reason: "SOURCE_DELETING", RetryAfter: time.Second,
		Message: fmt.Sprintf("the source %q is being deleted: wait until it is gone", name)}
}
