package action

import (
	"fmt"
	"maps"
	"math"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/whence-db/whence"
	"github.com/whence-db/whence/authz"
)

const (
	maxDescription    = 4096
	maxParameters     = 64
	maxValues         = 256
	maxWhere          = 64
	maxSet            = 256
	maxRows           = 1000
	maxSteps          = 16
	maxApprovals      = 2
	maxApprovalWindow = 7 * 24 * time.Hour
	maxUndoWindow     = 365 * 24 * time.Hour
	maxTimeout        = 5 * time.Minute
	maxReason         = 1024
	maxTextLength     = 1 << 20 // characters that a parameter may ask for
	defaultLength     = 65536
	reservedPrefix    = "whence."
)

var (
	actionName    = regexp.MustCompile(`^[a-z][a-z0-9._-]{0,127}$`)
	parameterName = regexp.MustCompile(`^[a-z][A-Za-z0-9_]{0,62}$`)
	upstreamName  = regexp.MustCompile(`^[a-z][a-z0-9_-]{0,62}$`)
	headerName    = regexp.MustCompile(`^[A-Za-z][A-Za-z0-9-]{0,63}$`)
)

var (
	types       = []ParameterType{Text, Integer, Number, Boolean, Time, UUID, JSON}
	credentials = []string{"user", "agent", "task", "execution"}
)

func invalid(field, format string, args ...any) error {
	return whence.Invalid(field, "ACTION_INVALID", fmt.Sprintf(format, args...))
}

// Validate tells what is wrong with a definition by itself, as an ErrInvalid about
// one field. What it needs of a live table or of other actions is asked elsewhere.
func (d Definition) Validate() error {
	v := validation{d: d, parameters: map[string]Parameter{}}
	for _, check := range []func() error{v.names, v.parametersOf, v.run, v.tier, v.limits} {
		if err := check(); err != nil {
			return err
		}
	}
	return nil
}

type validation struct {
	d          Definition
	parameters map[string]Parameter
}

func (v *validation) names() error {
	d := v.d
	switch {
	case !actionName.MatchString(d.Name):
		return invalid("name", "%q cannot name an action: use a lower-case letter, then letters, digits, \".\", \"_\" or \"-\"; at most 128", d.Name)
	case strings.HasPrefix(d.Name, reservedPrefix):
		return invalid("name", "names that begin with %q are reserved: choose another", reservedPrefix)
	case strings.TrimSpace(d.Description) == "" || utf8.RuneCountInString(d.Description) > maxDescription || !plain(d.Description):
		return invalid("description", "say in 1 to %d characters what the action does, for agents choose by it", maxDescription)
	}
	return nil
}

func (v *validation) parametersOf() error {
	if len(v.d.Parameters) > maxParameters {
		return invalid("parameters", "an action takes at most %d arguments", maxParameters)
	}
	for i, p := range v.d.Parameters {
		field := fmt.Sprintf("parameters[%d]", i)
		number := p.Type == Integer || p.Type == Number
		switch {
		case !parameterName.MatchString(p.Name):
			return invalid(field+".name", "%q cannot name a parameter: use a lower-case letter, then letters, digits or \"_\"; at most 63", p.Name)
		case v.parameters[p.Name].Name != "":
			return invalid(field+".name", "there are two parameters named %q", p.Name)
		case !slices.Contains(types, p.Type):
			return invalid(field+".type", "there is no type %q; there are %v", p.Type, types)
		case utf8.RuneCountInString(p.Description) > maxReason || !plain(p.Description):
			return invalid(field+".description", "describe the parameter in at most %d characters", maxReason)
		case p.Type != Text && (p.MaxLength != 0 || len(p.Values) > 0):
			return invalid(field, "maxLength and values are for text; %q is %s", p.Name, p.Type)
		case p.MaxLength < 0 || p.MaxLength > maxTextLength:
			return invalid(field+".maxLength", "maxLength is 1 to %d characters, or left out", maxTextLength)
		case len(p.Values) > maxValues:
			return invalid(field+".values", "there can be at most %d values", maxValues)
		case !number && (p.Minimum != nil || p.Maximum != nil):
			return invalid(field, "minimum and maximum are for numbers; %q is %s", p.Name, p.Type)
		case !finite(p.Minimum) || !finite(p.Maximum) || p.Minimum != nil && p.Maximum != nil && *p.Minimum > *p.Maximum:
			return invalid(field, "minimum must be at most maximum, and both finite")
		}
		for n, value := range p.Values {
			if !plain(value) || slices.Contains(p.Values[:n], value) {
				return invalid(field+".values", "name each value once, without null characters")
			}
		}
		v.parameters[p.Name] = p
	}
	return nil
}

func finite(f *float64) bool { return f == nil || !math.IsNaN(*f) && !math.IsInf(*f, 0) }

// plain tells whether Postgres can hold a text.
func plain(s string) bool { return utf8.ValidString(s) && !strings.ContainsRune(s, 0) }

func (v *validation) run() error {
	d := v.d
	set := 0
	for _, is := range []bool{d.Row != nil, d.HTTP != nil, d.Memory != nil, d.Saga != nil} {
		if is {
			set++
		}
	}
	switch {
	case set != 1:
		return invalid("run", "say what the action runs by exactly one of row, http, memory and saga")
	case d.Row != nil:
		return v.row(*d.Row)
	case d.HTTP != nil:
		return v.http(*d.HTTP)
	case d.Memory != nil:
		return v.memory(*d.Memory)
	default:
		return v.saga(*d.Saga)
	}
}

func (v *validation) row(r RowAction) error {
	_, _, _, ok := r.Table.Parts()
	switch {
	case !ok || !plain(string(r.Table)):
		return invalid("row.table", "%q is not a registered table's name: write \"source.schema.name\"", r.Table)
	case !slices.Contains([]Operation{Select, Insert, Update, Delete}, r.Operation):
		return invalid("row.operation", "there is no operation %q on rows; there are SELECT, INSERT, UPDATE and DELETE", r.Operation)
	case (r.Operation == Insert) != (len(r.Where) == 0):
		return invalid("row.where", "every operation but an insert says which rows it means, and an insert does not")
	case (r.Operation == Insert || r.Operation == Update) != (len(r.Set) > 0):
		return invalid("row.set", "an insert and an update say what they write, and no other operation does")
	case len(r.Where) > maxWhere || len(r.Set) > maxSet || len(r.Columns) > maxSet:
		return invalid("row", "at most %d columns choose rows, and %d are written or shown", maxWhere, maxSet)
	case r.MaxRows < 0 || r.MaxRows > maxRows:
		return invalid("row.maxRows", "an action touches 1 to %d rows", maxRows)
	case r.Operation == Insert && r.MaxRows > 1:
		return invalid("row.maxRows", "an insert makes one row")
	case r.Operation == Select && r.TriggersStayWithinRow:
		return invalid("row.triggersStayWithinRow", "reading fires no triggers: leave it out")
	}
	for i, c := range r.Columns {
		if !column(c) || slices.Contains(r.Columns[:i], c) {
			return invalid("row.columns", "name each column that is shown once")
		}
	}
	if err := v.operands("row.where", r.Where, column, false); err != nil {
		return err
	}
	for c, o := range r.Where { // one that is not given would widen what is touched
		if p := v.parameters[o.Parameter]; o.Parameter != "" && !p.Required {
			return invalid("row.where."+c, "the parameter %q chooses rows, so it must be required", p.Name)
		}
	}
	return v.operands("row.set", r.Set, column, false)
}

func column(s string) bool { return s != "" && len(s) <= 63 && plain(s) }

func anyName(s string) bool { return s != "" && len(s) <= 255 && plain(s) }

// operands checks values that are taken from somewhere; inverse allows the reply
// that is taken back.
func (v *validation) operands(field string, of map[string]Operand, named func(string) bool, inverse bool) error {
	for _, name := range slices.Sorted(maps.Keys(of)) {
		if !named(name) {
			return invalid(field, "%q names nothing that a value can be given to", name)
		}
		if err := v.operand(field+"."+name, of[name], inverse); err != nil {
			return err
		}
	}
	return nil
}

func (v *validation) operand(field string, o Operand, inverse bool) error {
	from := 0
	for _, is := range []bool{o.Parameter != "", len(o.Constant) > 0, o.Credential != "", o.Result != nil} {
		if is {
			from++
		}
	}
	switch {
	case from != 1:
		return invalid(field, "take the value from exactly one of parameter, constant, credential and result")
	case o.Parameter != "" && v.parameters[o.Parameter].Name == "":
		return invalid(field, "there is no parameter %q", o.Parameter)
	case o.Credential != "" && !slices.Contains(credentials, o.Credential):
		return invalid(field, "a credential has %s, not %q", strings.Join(credentials, ", "), o.Credential)
	case o.Result != nil && !inverse:
		return invalid(field, "the reply is known only to an inverse or a compensation")
	case o.Result != nil && *o.Result != "" && !strings.HasPrefix(*o.Result, "/"):
		return invalid(field, "%q is not a JSON Pointer: it is empty or begins with \"/\"", *o.Result)
	case len(o.Constant) > 0 && !plainJSON(o.Constant):
		return invalid(field, "a constant is any JSON value without null characters")
	}
	return nil
}

func (v *validation) memory(m MemoryAction) error {
	allowed, needed := []string{"text", "kind", "subject", "key"}, "text"
	switch m.Operation {
	case Remember:
	case Forget:
		allowed, needed = []string{"id"}, "id"
	default:
		return invalid("memory.operation", "there is no operation %q on memory; there are REMEMBER and FORGET", m.Operation)
	}
	o, ok := m.Fields[needed]
	if !ok || o.Parameter != "" && v.parameters[o.Parameter].Name != "" && !v.parameters[o.Parameter].Required {
		return invalid("memory.fields", "%s needs %q, from a required parameter or what is always there", m.Operation, needed)
	}
	return v.operands("memory.fields", m.Fields, func(s string) bool { return slices.Contains(allowed, s) }, false)
}

func (v *validation) saga(s SagaAction) error {
	if len(s.Steps) == 0 || len(s.Steps) > maxSteps {
		return invalid("saga.steps", "a saga has 1 to %d steps", maxSteps)
	}
	for i, step := range s.Steps {
		field := fmt.Sprintf("saga.steps[%d]", i)
		if err := v.step(field+".step", step.Step, false); err != nil {
			return err
		}
		if step.Compensation != nil {
			if err := v.step(field+".compensation", *step.Compensation, true); err != nil {
				return err
			}
		}
	}
	return nil
}

func (v *validation) step(field string, s Step, inverse bool) error {
	switch {
	case !actionName.MatchString(s.Action):
		return invalid(field+".action", "%q cannot name an action", s.Action)
	case s.Action == v.d.Name:
		return invalid(field+".action", "an action cannot run itself")
	}
	return v.operands(field+".arguments", s.Arguments, parameterName.MatchString, inverse)
}

// tier holds what the action says of itself against what it runs.
func (v *validation) tier() error {
	d := v.d
	if !d.Tier.Valid() {
		return invalid("tier", "there is no tier %q; there are READ, REVERSIBLE and IRREVERSIBLE", d.Tier)
	}
	read, irreversible := d.Tier == authz.TierRead, d.Tier == authz.TierIrreversible
	switch {
	case d.Row != nil && (d.Row.Operation == Select) != read:
		return invalid("tier", "a row action is READ exactly when its operation is SELECT")
	case d.HTTP != nil && (d.HTTP.Request.Method == http.MethodGet) != read:
		return invalid("tier", "an HTTP action is READ exactly when its method is GET")
	case d.HTTP != nil && (d.HTTP.Inverse != nil) != (d.Tier == authz.TierReversible):
		return invalid("http.inverse", "an HTTP action has an inverse exactly when it is REVERSIBLE")
	case d.Memory != nil && d.Memory.Operation == Forget && !irreversible:
		return invalid("tier", "what is forgotten is gone for good: the tier is IRREVERSIBLE")
	case d.Memory != nil && read:
		return invalid("tier", "remembering writes: the tier is REVERSIBLE")
	case irreversible != (strings.TrimSpace(d.IrreversibleBecause) != ""):
		return invalid("irreversibleBecause", "an IRREVERSIBLE action, and no other, says why there is no inverse")
	case utf8.RuneCountInString(d.IrreversibleBecause) > maxReason || !plain(d.IrreversibleBecause):
		return invalid("irreversibleBecause", "say it in at most %d characters", maxReason)
	case d.Compensation != nil && !irreversible:
		return invalid("compensation", "only an IRREVERSIBLE action has a compensation: the others are undone or change nothing")
	case d.Compensation != nil:
		return v.step("compensation", *d.Compensation, true)
	}
	return nil
}

func (v *validation) limits() error {
	d := v.d
	bounds := func(field string, is Duration, most time.Duration) error {
		if is < 0 || time.Duration(is) > most {
			return invalid(field, "%s is above 0 and at most %v, or left out", field, most)
		}
		return nil
	}
	switch {
	case d.Approvals > 0 && d.Tier == authz.TierRead:
		return invalid("approvals", "what only reads is not approved: leave approvals out, or give it another tier")
	case d.Approvals < 0 || d.Approvals > maxApprovals:
		return invalid("approvals", "at most %d people approve an execution", maxApprovals)
	case d.CostMicros < 0:
		return invalid("costMicros", "an execution costs nothing or something")
	case d.UndoWindow != 0 && d.UndoTime() == 0:
		return invalid("undoWindow", "only what can be undone or compensated has a time to do so")
	}
	if err := bounds("approvalWindow", d.ApprovalWindow, maxApprovalWindow); err != nil {
		return err
	}
	if err := bounds("undoWindow", d.UndoWindow, maxUndoWindow); err != nil {
		return err
	}
	return bounds("timeout", d.Timeout, maxTimeout)
}
