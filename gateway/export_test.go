package gateway

import "github.com/google/uuid"

// Steps has f told of each step of an execution, as it is reached.
func (g *Gateway) Steps(f func(step string)) { g.step = f }

// Holder is whose leases this process's are.
func (g *Gateway) Holder() uuid.UUID { return g.holder }
