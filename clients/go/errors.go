package forebay

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	rpcstatus "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	forebayv1 "github.com/forebay/forebay/gen/go/forebay/v1"
)

const (
	domain       = "forebay"
	reasonPrefix = "ERROR_REASON_"
	pushbackKey  = "grpc-retry-pushback-ms"
)

// Reason is what happened, as the contract's ErrorReason.
type Reason = forebayv1.ErrorReason

// Violation is a field that was not as it has to be.
type Violation struct {
	// Field is its path, such as inputs[0].shape.
	Field string
	// Description is a sentence.
	Description string
}

// Error is an error of a call, a stream item or a job. Use errors.As to get at it, and status.Code or status.FromError for
// the plain gRPC status.
type Error struct {
	// Code says what to do in general.
	Code codes.Code
	// Reason says what happened; unspecified if the error is not the server's own (a lost connection, a proxy), or if
	// this client is older than the reason, whose name is in ReasonName.
	Reason Reason
	// ReasonName is the reason's name without prefix, such as QUEUE_FULL; empty if there is none.
	ReasonName string
	// Message is a sentence.
	Message string
	// RetryDelay is how long to wait before the same is sent again; 0 if the server did not ask for that.
	RetryDelay time.Duration
	// Violations are the fields of a request that is not valid.
	Violations []Violation
	// ErrorID finds an internal error in the server's log.
	ErrorID string

	status *status.Status
}

// Error is the message, with code and reason.
func (e *Error) Error() string {
	if e.ReasonName == "" {
		return fmt.Sprintf("forebay: %s: %s", e.Code, e.Message)
	}
	return fmt.Sprintf("forebay: %s (%s): %s", e.Code, e.ReasonName, e.Message)
}

// GRPCStatus is the status that the error was made from.
func (e *Error) GRPCStatus() *status.Status { return e.status }

// Temporary is whether the same request may succeed later or elsewhere: the server is draining, loading or without its
// engine or store, or it is overloaded and has said when to come back. A message that is too large, whose code is that of
// overload, is not.
func (e *Error) Temporary() bool {
	switch e.Code {
	case codes.Unavailable:
		return true
	case codes.ResourceExhausted:
		return e.RetryDelay > 0 && !e.tooLarge()
	}
	return false
}

// tooLarge is whether gRPC, here or there, refused a message for its size: a limit that has no reason, only this text.
func (e *Error) tooLarge() bool {
	return e.ReasonName == "" && strings.Contains(e.Message, "larger than max")
}

// away is whether the server may be gone and come back: to ask it again does no harm to who only asks.
func (e *Error) away() bool { return e.Code == codes.Unavailable || e.Code == codes.DeadlineExceeded }

// unavailable is an error that this client finds, and not the server or gRPC.
func unavailable(message string) *Error { return fromStatus(status.New(codes.Unavailable, message)) }

// wrap makes an error of gRPC ours. Nil stays nil.
func wrap(err error) error {
	if err == nil {
		return nil
	}
	return fromError(err)
}

// closing is what gRPC says of calls on a connection that was closed here.
const closing = "grpc: the client connection is closing"

// fromAttempt makes an error of gRPC ours, of a call with this context. One that nobody here has cancelled, but its server
// or something on the way, was cut off: as little an answer as a connection that is lost.
func fromAttempt(ctx context.Context, err error) *Error {
	failure := fromError(err)
	if failure.Code != codes.Canceled || ctx.Err() != nil || failure.ReasonName != "" || failure.Message == closing {
		return failure
	}
	return unavailable("the call was cut off by the server or on its way: " + failure.Message)
}

func fromError(err error) *Error {
	// FromError also knows what a context's end means.
	found, ok := status.FromError(err)
	if !ok {
		found = status.FromContextError(err)
	}
	return fromStatus(found)
}

// fromCall makes an error of gRPC ours, with what the trailer says of it beyond its status: a proxy may say when to come
// back by it alone. Nil stays nil.
func fromCall(ctx context.Context, err error, trailer metadata.MD) *Error {
	if err == nil {
		return nil
	}
	made := fromAttempt(ctx, err)
	if pushback := trailer.Get(pushbackKey); made.RetryDelay == 0 && len(pushback) > 0 {
		if milliseconds, err := strconv.ParseUint(pushback[0], 10, 31); err == nil {
			made.RetryDelay = time.Duration(milliseconds) * time.Millisecond
		}
	}
	return made
}

func fromProto(proto *rpcstatus.Status) *Error { return fromStatus(status.FromProto(proto)) }

func fromStatus(from *status.Status) *Error {
	made := &Error{Code: from.Code(), Message: from.Message(), status: from}
	for _, detail := range from.Details() {
		switch detail := detail.(type) {
		case *errdetails.ErrorInfo:
			if detail.GetDomain() == domain {
				made.ReasonName = detail.GetReason()
				made.Reason = Reason(forebayv1.ErrorReason_value[reasonPrefix+strings.TrimPrefix(detail.GetReason(), reasonPrefix)])
				made.ErrorID = detail.GetMetadata()["error_id"]
			}
		case *errdetails.RetryInfo:
			made.RetryDelay = detail.GetRetryDelay().AsDuration()
		case *errdetails.BadRequest:
			for _, violation := range detail.GetFieldViolations() {
				made.Violations = append(made.Violations, Violation{violation.GetField(), violation.GetDescription()})
			}
		}
	}
	return made
}
