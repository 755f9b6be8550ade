package reason

// Next is what whoever gets an error does next. The set is closed.
type Next string

// The next steps. To send again, wherever it says so, is to send the same request: a
// write with the same idempotency key has its effect once, however often it is sent.
const (
	// FixRequest: the request is at fault, and will be however often it is sent.
	FixRequest Next = "FIX_REQUEST"
	// LookUp: what the request names is not there, or is there already.
	LookUp Next = "LOOK_UP"
	// Retry: it may work later, or already has.
	Retry Next = "RETRY"
	// NewKey: under this idempotency key it will not run.
	NewKey Next = "NEW_KEY"
	// PreviewAgain: what was previewed is not what would happen.
	PreviewAgain Next = "PREVIEW_AGAIN"
	// WaitForApproval: an operator decides first.
	WaitForApproval Next = "WAIT_FOR_APPROVAL"
	// LookAtOutcome: something has happened, or may have, that the caller must see first.
	LookAtOutcome Next = "LOOK_AT_OUTCOME"
	// SpendLess: what is left of a budget does not pay for it.
	SpendLess Next = "SPEND_LESS"
	// GetToken: the token does not count, and another would.
	GetToken Next = "GET_TOKEN"
	// SendProof: the token counts, and its holder has not proved to be it.
	SendProof Next = "SEND_PROOF"
	// StartTask: the task is over, and another may go on.
	StartTask Next = "START_TASK"
	// AskForScope: the credential does not reach so far.
	AskForScope Next = "ASK_FOR_SCOPE"
	// AskOperator: a person must change something first, here or in the source.
	AskOperator Next = "ASK_OPERATOR"
	// Stop: nothing that the caller could send will bring it about.
	Stop Next = "STOP"
)

var advice = map[Next]string{ //nolint:gosec // G101: words about tokens, not tokens
	FixRequest:      "Correct the request, in the field that is named if one is, and send it as a new one: a write with a new idempotency key.",
	LookUp:          "List what there is, and name one of that; or go on with what is there already.",
	Retry:           "Send the same again, with the same idempotency key, after RetryInfo's delay; without one, after a second and then ever longer.",
	NewKey:          "Send it with a new idempotency key, if it is still wanted.",
	PreviewAgain:    "Preview again, decide by what that shows, and execute with its digest and a new idempotency key.",
	WaitForApproval: "Go on with other work. Send the same again, with the same idempotency key, after RetryInfo's delay and until it is decided.",
	LookAtOutcome:   "Read what is the case now, and decide by that; do not send it again unseen.",
	SpendLess:       "Ask for less, or stop and hand back what there is.",
	GetToken:        "Get a new token at /oauth/token, and send the same again with it.",
	SendProof:       "Make a new DPoP proof, with the token's key and a jti of its own, and send the same again with it.",
	StartTask:       "Start a new task at /oauth/token, and send the request again with its token; a write with a new idempotency key.",
	AskForScope:     "Go on without it; or ask, whoever delegated the task, for one whose scope holds it.",
	AskOperator:     "Tell an operator the reason and the metadata: a person must change something first.",
	Stop:            "Do not try again; hand back what there is.",
}

// Steps returns every next step.
func Steps() []Next {
	return []Next{FixRequest, LookUp, Retry, NewKey, PreviewAgain, WaitForApproval, LookAtOutcome, SpendLess,
		GetToken, SendProof, StartTask, AskForScope, AskOperator, Stop}
}

// Advice says what to do, in a sentence.
func (n Next) Advice() string { return advice[n] }
