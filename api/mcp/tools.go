package mcp

import (
	"fmt"

	sdk "github.com/modelcontextprotocol/go-sdk/mcp"
	"google.golang.org/protobuf/proto"

	rpc "github.com/whence-db/whence/proto/gen/whence/v1/whencev1connect"
)

// tool is a call of the API as a model sees it.
type tool struct {
	name, title string
	description string
	example     string // arguments that make sense
	procedure   string
	request     string // name of the message
	reply       func() proto.Message
	render      func(proto.Message) string
	// key says when to give an idempotency key; empty: the call takes none.
	key   string
	hints sdk.ToolAnnotations

	takes []string // names of the arguments; set by read
	input object   // JSON Schema; set by read
}

// returning completes a tool with what its call returns and how that reads.
func returning[T any, M interface {
	*T
	proto.Message
}](render func(M) string, t tool) tool {
	t.reply = func() proto.Message { return M(new(T)) }
	t.render = func(m proto.Message) string { return render(m.(M)) }
	return t
}

func ptr[T any](v T) *T { return &v }

const onceOnly = "With the same key again the call does nothing again and returns what it did the first time: use a new key for every intended effect, and the same one when you repeat a call whose outcome you do not know."

// tools are what is offered, in the order in which a model should come to know them.
var tools = []tool{
	returning(renderQuery, tool{name: "query", title: "Ask memory",
		procedure: rpc.MemoryServiceQueryProcedure, request: "QueryRequest", example: `{"text": "how long may a customer return something?"}`,
		hints: sdk.ToolAnnotations{ReadOnlyHint: true, OpenWorldHint: ptr(false)},
		description: "Find what is remembered about a text, by meaning and by words: rows of captured database tables and notes. " +
			"Every hit says where it came from (table, key, version, commit time) and whether it is still so: FRESH, VERIFIED (compared with the live row), " +
			"STALE (something newer exists) or UNKNOWN (nobody can vouch for it). " +
			"Set consistency.verify to have hits compared with the live rows, and consistency.atLeast to the token of a write to see that write. " +
			"Costs one call of the task's budget, and is stored under its answerId, which remember takes in derivedFrom."}),
	returning(renderRecord, tool{name: "record", title: "Look at one record",
		procedure: rpc.MemoryServiceGetRecordProcedure, request: "GetRecordRequest", example: `{"table": "app.public.articles", "key": {"id": "7"}}`,
		hints: sdk.ToolAnnotations{ReadOnlyHint: true, OpenWorldHint: ptr(false)},
		description: "Read one record whole, as it was captured last: the row or note that a hit came from. Take table and key from the hit's origin; values of the key are text. " +
			"Fails with not_found for one that does not exist or is outside the task's scope."}),
	returning(renderRemember, tool{name: "remember", title: "Write a note",
		procedure: rpc.MemoryServiceRememberProcedure, request: "RememberRequest", example: `{"text": "Ms Ito wants refunds as vouchers", "kind": "NOTE_KIND_PREFERENCE"}`,
		key: "Give one, so that a repeated call writes no second note. ",
		// Not idempotent by hint: that would hold without a key as well.
		hints: sdk.ToolAnnotations{DestructiveHint: ptr(false), OpenWorldHint: ptr(false)},
		description: "Keep something for later tasks: a fact, an event, a preference or a procedure. It is kept with this task, agent and user as its origin. " +
			"Say in derivedFrom which answers (answerId) or hits (chunkId) it was concluded from: it is then shown as STALE once they change. " +
			"With key, a later note with the same key about the same subject supersedes it. " +
			"Returns a token for consistency.atLeast of a query that is to know the note."}),
	returning(renderForget, tool{name: "forget", title: "Remove a note",
		procedure: rpc.MemoryServiceForgetProcedure, request: "ForgetRequest", example: `{"key": {"id": "0198…"}, "reason": "the user asked for it"}`,
		key:   "Give one, so that a repeated call succeeds as well. ",
		hints: sdk.ToolAnnotations{DestructiveHint: ptr(true), IdempotentHint: true, OpenWorldHint: ptr(false)},
		description: "Remove a note for good, with its versions and vectors and its words in every stored answer. It cannot be undone. " +
			"Only notes (table whence.notes) can be forgotten; a row goes from memory when it is deleted from its own table."}),
	returning(renderActions, tool{name: "list_actions", title: "List actions",
		procedure: rpc.ActionServiceListActionsProcedure, request: "ListActionsRequest", example: `{}`,
		hints: sdk.ToolAnnotations{ReadOnlyHint: true, OpenWorldHint: ptr(false)},
		description: "List the registered actions that this task may use: what each does, the JSON Schema of its arguments, its tier " +
			"(TIER_READ changes nothing, TIER_REVERSIBLE can be undone for a time, TIER_IRREVERSIBLE cannot and runs only once an operator has approved it), whether approval is required, and what it costs. Costs no call."}),
	returning(renderPreview, tool{name: "preview", title: "Preview an action",
		procedure: rpc.ActionServicePreviewProcedure, request: "PreviewRequest", example: `{"action": "close_ticket", "arguments": {"id": "7"}}`,
		hints: sdk.ToolAnnotations{ReadOnlyHint: true, OpenWorldHint: ptr(false)},
		description: "See what execute would do, without doing it: the rows before and after, the requests that would be sent, whether approval and an idempotencyKey are needed, and what it would cost. " +
			"Returns a digest; pass it to execute, and anything but what you saw here fails with PREVIEW_STALE."}),
	returning(renderExecute, tool{name: "execute", title: "Execute an action",
		procedure: rpc.ActionServiceExecuteProcedure, request: "ExecuteRequest", example: `{"action": "close_ticket", "arguments": {"id": "7"}, "idempotencyKey": "ticket-7-close"}`,
		key:   "Required for every action that changes something: all but those of TIER_READ. ",
		hints: sdk.ToolAnnotations{DestructiveHint: ptr(true), IdempotentHint: true, OpenWorldHint: ptr(true)},
		description: "Run a registered action, once for each idempotencyKey. Preview it first and pass the digest, so that exactly what you saw is what runs. " +
			"Reversible and irreversible actions need an idempotencyKey. " +
			"failed_precondition with reason APPROVAL_PENDING means that an operator has to approve this very execution: nothing has happened; tell the user, and call again later with the same idempotencyKey and arguments, which goes on from where it stands. " +
			"PREVIEW_STALE means that the rows have changed: preview again. " +
			"The execution's id is what undo takes, until undoUntil; its token, given to consistency.atLeast, makes a query see what was written."}),
	returning(renderUndo, tool{name: "undo", title: "Undo an execution",
		procedure: rpc.ActionServiceUndoProcedure, request: "UndoRequest", example: `{"id": "0198…", "idempotencyKey": "undo-ticket-7-close"}`,
		key:   "Give one, so that a repeated call is the same undoing. ",
		hints: sdk.ToolAnnotations{DestructiveHint: ptr(true), IdempotentHint: true, OpenWorldHint: ptr(true)},
		description: "Take an execution back by the id that execute returned. It puts rows back as they were before it, or fails with failed_precondition and says what stands against that: " +
			"the action is irreversible, its time is over, or the rows have been changed since."}),
	returning(renderTask, tool{name: "task", title: "Look at the task",
		procedure: rpc.TaskServiceGetTaskProcedure, request: "GetTaskRequest", example: `{}`,
		hints: sdk.ToolAnnotations{ReadOnlyHint: true, OpenWorldHint: ptr(false)},
		description: "See what you are working on: the task's purpose, the user it is for, what it may touch (scope), what it may still spend (budget) and until when. " +
			"Look here when a call was refused, and before long work. Costs no call."}),
}

// read takes the tool's arguments from the contract.
func (t *tool) read(c contract) error {
	schema, err := c.schema(t.request, 0)
	if err != nil {
		return err
	}
	properties, _ := schema.get("properties").(object)
	if t.key != "" {
		properties = properties.with(idempotencyKey, object{
			{"type", "string"}, {"minLength", 1}, {"maxLength", 255}, {"pattern", "^[ -~]*$"}, {"description", t.key + onceOnly}})
	}
	for _, p := range properties {
		if o, ok := p.value.(object); !ok || o.get("description") == nil {
			return fmt.Errorf("%s is not described", p.name)
		}
		t.takes = append(t.takes, p.name)
	}
	if properties == nil {
		properties = object{}
	}
	t.input = object{{"type", "object"}, {"properties", properties}}
	if required := schema.get("required"); required != nil {
		t.input = t.input.with("required", required)
	}
	t.input = t.input.with("additionalProperties", false)
	return nil
}

func (t *tool) describe() *sdk.Tool {
	hints := t.hints
	hints.Title = t.title
	return &sdk.Tool{Name: t.name, Title: t.title, Description: t.description, InputSchema: t.input, Annotations: &hints}
}
