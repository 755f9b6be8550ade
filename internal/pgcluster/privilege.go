package pgcluster

import (
	"errors"
	"fmt"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"syscall"
)

// unprivileged returns whom the server runs as: nil, the caller, unless the
// caller is root, as whom Postgres refuses to run.
func unprivileged() (*syscall.Credential, error) {
	if os.Geteuid() != 0 {
		return nil, nil
	}
	for _, name := range []string{"postgres", "nobody"} {
		u, err := user.Lookup(name)
		if err != nil {
			continue
		}
		uid, err := strconv.ParseUint(u.Uid, 10, 32)
		if err != nil {
			return nil, fmt.Errorf("user %s: %w", name, err)
		}
		gid, err := strconv.ParseUint(u.Gid, 10, 32)
		if err != nil {
			return nil, fmt.Errorf("user %s: %w", name, err)
		}
		return &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}, nil
	}
	return nil, fmt.Errorf("postgres refuses to run as root, and there is no user postgres or nobody to run it as")
}

// TempDir makes a folder that the server's user can reach: below the usual
// temporary folder if that is open to it, else below a system-wide one.
func TempDir(prefix string) (string, error) {
	cred, err := unprivileged()
	if err != nil {
		return "", err
	}
	var failed []error
	for _, base := range []string{os.TempDir(), "/tmp", "/var/tmp"} {
		dir, err := os.MkdirTemp(base, prefix)
		if err == nil && cred != nil {
			if err = openPath(dir, cred); err != nil {
				err = errors.Join(err, os.Remove(dir))
			}
		}
		if err == nil {
			return dir, nil
		}
		failed = append(failed, err)
	}
	return "", errors.Join(failed...)
}

// openPath makes sure that cred can reach dir. It opens dir itself to
// traversal, and never the folders above it: those may be closed on purpose.
func openPath(dir string, cred *syscall.Credential) error {
	target, err := filepath.EvalSymlinks(dir)
	if err != nil {
		return err
	}
	for parent := filepath.Dir(target); ; parent = filepath.Dir(parent) {
		info, err := os.Stat(parent)
		if err != nil {
			return err
		}
		if !mayTraverse(info, cred) {
			return fmt.Errorf("%s cannot hold a Postgres cluster: as root the server runs as user %d, who may not pass through %s (mode %v): "+
				"choose a folder elsewhere, or allow it with `chmod o+x %s`",
				dir, cred.Uid, parent, info.Mode().Perm(), parent)
		}
		if parent == filepath.Dir(parent) {
			break
		}
	}
	info, err := os.Stat(target)
	if err != nil {
		return err
	}
	if mayTraverse(info, cred) {
		return nil
	}
	return os.Chmod(target, info.Mode().Perm()|0o001)
}

func mayTraverse(info os.FileInfo, cred *syscall.Credential) bool {
	stat, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return true
	}
	bit := os.FileMode(0o001)
	switch {
	case stat.Uid == cred.Uid:
		bit = 0o100
	case stat.Gid == cred.Gid:
		bit = 0o010
	}
	return info.Mode().Perm()&bit != 0
}
