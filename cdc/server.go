package cdc

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/whence-db/whence"
)

// closeTimeout bounds a goodbye.
const closeTimeout = 2 * time.Second

const serverSQL = `
select current_setting('wal_level'),
       current_setting('server_version_num')::int,
       current_setting('server_version'),
       current_setting('server_encoding'),
       pg_is_in_recovery(),
       current_user::text,
       (select rolreplication or rolsuper from pg_catalog.pg_roles where rolname = current_user),
       current_setting('max_replication_slots')::int - (select count(*) from pg_catalog.pg_replication_slots)::int,
       current_setting('max_wal_senders')::int - (select count(*) from pg_catalog.pg_stat_get_wal_senders())::int`

// CheckServer says whether a database can be captured by the role that conn
// uses: an *whence.Error with the reason WAL_LEVEL_NOT_LOGICAL, SERVER_TOO_OLD,
// SERVER_IS_STANDBY, ENCODING_NOT_SUPPORTED, NO_REPLICATION_PRIVILEGE,
// NO_REPLICATION_SLOT_FREE or NO_WAL_SENDER_FREE says what to change.
func CheckServer(ctx context.Context, conn *pgx.Conn) error {
	slots, senders, err := checkServer(ctx, conn)
	switch {
	case err != nil:
		return err
	case slots < 1:
		return refuse("NO_REPLICATION_SLOT_FREE", "every replication slot of the server is taken: drop one that is not needed "+
			"(SELECT slot_name, active FROM pg_replication_slots), or raise max_replication_slots and restart the server")
	case senders < 1:
		return refuse("NO_WAL_SENDER_FREE", "every replication connection of the server is taken: raise max_wal_senders and restart the server")
	}
	return nil
}

// reasonStandby is the one reason that may go away without anybody's doing.
const reasonStandby = "SERVER_IS_STANDBY"

// checkServer leaves out what only matters before a slot exists.
func checkServer(ctx context.Context, conn *pgx.Conn) (slots, senders int, err error) {
	var (
		level, version, encoding, user string
		number                         int
		standby, replication           bool
	)
	err = conn.QueryRow(ctx, serverSQL).Scan(&level, &number, &version, &encoding, &standby, &user, &replication, &slots, &senders)
	switch {
	case err != nil:
		return 0, 0, fmt.Errorf("read the source's settings: %w", err)
	case number < 150000:
		err = refuse("SERVER_TOO_OLD", fmt.Sprintf("the source runs PostgreSQL %s: capture needs version 15 or newer", version))
	case standby:
		err = refuse(reasonStandby, "the source is a standby: connect to its primary, where a publication can be made")
	case level != "logical":
		err = refuse("WAL_LEVEL_NOT_LOGICAL", fmt.Sprintf("the source's wal_level is %s, so its log does not hold what capture reads: "+
			"run ALTER SYSTEM SET wal_level = logical and restart the server", level))
	case encoding == "SQL_ASCII":
		err = refuse("ENCODING_NOT_SUPPORTED", "the source's encoding is SQL_ASCII, so what its bytes mean is not known: "+
			"capture needs a database with a declared encoding such as UTF8")
	case !replication:
		err = refuse("NO_REPLICATION_PRIVILEGE", noReplicationPrivilege(user))
	}
	return slots, senders, err
}

const clusterSQL = `
select (select system_identifier::text from pg_catalog.pg_control_system()),
       ('x' || left(pg_catalog.pg_walfile_name(pg_catalog.pg_current_wal_insert_lsn()), 8))::bit(32)::int`

// onCluster fails unless conn leads to the history that the stream is of. A
// connection string may name several servers, or an address that moves: what
// another server says, before the stream has been compared with it, must not be
// taken for what became of the tables. A source that does not let the role ask
// is taken at its word.
func onCluster(ctx context.Context, conn *pgx.Conn, want Cluster) error {
	var got Cluster
	err := conn.QueryRow(ctx, clusterSQL).Scan(&got.System, &got.Timeline)
	switch {
	case isCode(err, codeDenied):
		return nil
	case err != nil:
		return fmt.Errorf("ask which cluster this is: %w", err)
	case got != want:
		return fmt.Errorf("this server is of timeline %d of cluster %s, and the stream of timeline %d of cluster %s",
			got.Timeline, got.System, want.Timeline, want.System)
	}
	return nil
}

func noReplicationPrivilege(user string) string {
	return fmt.Sprintf("the role %s may not replicate: run ALTER ROLE %s REPLICATION as a superuser",
		user, pgx.Identifier{user}.Sanitize())
}

func refuse(reason, message string) *whence.Error {
	return &whence.Error{Kind: whence.ErrPrecondition, Reason: reason, Message: message}
}
