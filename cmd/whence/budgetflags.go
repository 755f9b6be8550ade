package main

import (
	"encoding/json"
	"fmt"

	"google.golang.org/protobuf/encoding/protojson"

	v1 "github.com/whence-db/whence/proto/gen/whence/v1"
)

// budgetFlags bound what a task may spend beside calls.
type budgetFlags struct {
	Budget map[string]int64 `help:"More that it may spend: writes, rows, bytes, embeddingTokens, spendMicros, concurrency." placeholder:"METER=N" mapsep:","`
}

// message is nil when nothing is bounded; no calls, or 0, are no bound.
func (f budgetFlags) message(calls *uint32) (*v1.BudgetLimits, error) {
	if calls != nil && *calls == 0 {
		calls = nil
	}
	if calls == nil && len(f.Budget) == 0 {
		return nil, nil
	}
	b, err := json.Marshal(f.Budget)
	if err != nil {
		return nil, err
	}
	out := &v1.BudgetLimits{}
	if len(f.Budget) > 0 {
		if err := protojson.Unmarshal(b, out); err != nil {
			return nil, fmt.Errorf("--budget: %w; write it as --budget writes=10,rows=500", err)
		}
	}
	out.Calls = calls
	return out, nil
}
