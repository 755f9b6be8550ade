package api

import (
	"os"
	"testing"

	"github.com/whence-db/whence/internal/pgtest"
)

func TestMain(m *testing.M) { os.Exit(pgtest.Main(m)) }
