package forebay

import (
	"context"
	"fmt"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	_ "google.golang.org/grpc/health" // client-side health checking, which the service configuration asks for
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/metadata"

	forebayv1 "github.com/forebay/forebay/gen/go/forebay/v1"
)

const (
	// DefaultTimeout is the deadline of a call whose context has none.
	DefaultTimeout = 30 * time.Second
	// DefaultMaxMessageBytes is the largest message, both ways; the server has the same default.
	DefaultMaxMessageBytes = 16 << 20

	keepaliveTime    = 30 * time.Second // servers accept a ping every 10
	keepaliveTimeout = 20 * time.Second
	firstReconnect   = 100 * time.Millisecond
	lastReconnect    = 5 * time.Second
	connectTimeout   = 20 * time.Second // gRPC's default
	tenantKey        = "x-forebay-tenant"
)

// repetitions has gRPC repeat UNAVAILABLE, which did not run or is harmless to run again. The other calls about jobs are
// repeated by their methods, for longer. RESOURCE_EXHAUSTED is not on the list: gRPC would obey the server's pushback where
// there is one, but also repeat messages that are too large; [Error.Temporary] tells these apart.
const repetitions = `"methodConfig": [{
    "name": [{"service": "forebay.v1.InferenceService", "method": "Predict"},
             {"service": "forebay.v1.ModelService"},
             {"service": "forebay.v1.JobService", "method": "ListJobs"}],
    "retryPolicy": {
      "maxAttempts": 4,
      "initialBackoff": "0.05s",
      "maxBackoff": "2s",
      "backoffMultiplier": 2,
      "retryableStatusCodes": ["UNAVAILABLE"]
    }
  }],
  "retryThrottling": {"maxTokens": 100, "tokenRatio": 0.1}`

// serviceConfig balances calls over all addresses of the target and, with health, leaves out servers that say that they do
// not serve.
func serviceConfig(health bool) string {
	checked := ""
	if health {
		checked = `"healthCheckConfig": {"serviceName": ""}, `
	}
	return `{"loadBalancingConfig": [{"round_robin": {}}], ` + checked + repetitions + "}"
}

// maybeSeveral is whether a target may stand for more than one server: if it says how it is to be resolved, as in
// dns:///name:port, and that is not a socket or an address.
func maybeSeveral(target string) bool {
	scheme, rest, _ := strings.Cut(target, ":")
	switch scheme {
	case "dns":
		return true
	case "unix", "unix-abstract", "passthrough":
		return false
	}
	return strings.HasPrefix(rest, "//")
}

// Client calls a Forebay server, or several behind one name. It may be used by many goroutines.
type Client struct {
	conn      *grpc.ClientConn
	inference forebayv1.InferenceServiceClient
	jobs      forebayv1.JobServiceClient
	retry     Retry
	budget    *budget
	timeout   time.Duration
	metadata  []string
}

// Option changes what [Dial] does.
type Option func(*settings)

type settings struct {
	credentials credentials.TransportCredentials
	retry       Retry
	health      bool
	timeout     time.Duration
	maxBytes    int
	metadata    []string
	dialOptions []grpc.DialOption
}

// WithTLS encrypts the connection; with certificates in the credentials, mutually.
func WithTLS(credentials credentials.TransportCredentials) Option {
	return func(s *settings) { s.credentials = credentials }
}

// WithRetry sets how predictions are repeated beyond what gRPC does, instead of by [DefaultRetry].
func WithRetry(retry Retry) Option {
	return func(s *settings) { s.retry = retry }
}

// WithHealthCheck sets whether servers that say that they do not serve are left out. By default they are if the target may
// stand for several; a single server that refuses says better why.
func WithHealthCheck(check bool) Option {
	return func(s *settings) { s.health = check }
}

// WithTimeout sets the deadline of calls whose context has none.
func WithTimeout(timeout time.Duration) Option {
	return func(s *settings) { s.timeout = timeout }
}

// WithMaxMessageBytes sets the largest message, both ways.
func WithMaxMessageBytes(bytes int) Option {
	return func(s *settings) { s.maxBytes = bytes }
}

// WithTenant says who calls, for servers that believe it from metadata.
func WithTenant(tenant string) Option {
	return WithMetadata(tenantKey, tenant)
}

// WithMetadata sends a key and its value with every call.
func WithMetadata(key, value string) Option {
	return func(s *settings) { s.metadata = append(s.metadata, strings.ToLower(key), value) }
}

// WithDialOptions passes further options to gRPC, such as interceptors and resolvers; they are stronger than this package's.
func WithDialOptions(options ...grpc.DialOption) Option {
	return func(s *settings) { s.dialOptions = append(s.dialOptions, options...) }
}

// Dial makes a client for a target: host:port, unix:/path, or any other that gRPC resolves (dns:///name:port balances over
// all addresses of the name, and leaves out those whose servers do not serve). It connects with the first call.
//
// Within a call's deadline gRPC repeats UNAVAILABLE up to three times, elsewhere if there is an elsewhere, unless a tenth
// of all calls fail; predictions and the other calls of the contract may be repeated without harm. [Client.Predict] also
// repeats what was shed, and what stays UNAVAILABLE for longer, as [WithRetry] says.
func Dial(target string, options ...Option) (*Client, error) {
	s := settings{
		credentials: insecure.NewCredentials(), retry: DefaultRetry(), health: maybeSeveral(target),
		timeout: DefaultTimeout, maxBytes: DefaultMaxMessageBytes,
	}
	for _, option := range options {
		option(&s)
	}
	if err := s.retry.check(); err != nil {
		return nil, err
	}
	dialOptions := []grpc.DialOption{
		grpc.WithTransportCredentials(s.credentials),
		grpc.WithDefaultServiceConfig(serviceConfig(s.health)),
		grpc.WithUserAgent("forebay-go"),
		grpc.WithConnectParams(grpc.ConnectParams{
			// gRPC's own pauses between attempts to connect grow to two minutes: long after a server is back.
			Backoff: backoff.Config{
				BaseDelay: firstReconnect, Multiplier: 1.6, Jitter: 0.2, MaxDelay: lastReconnect,
			},
			MinConnectTimeout: connectTimeout,
		}),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{
			Time: keepaliveTime, Timeout: keepaliveTimeout, PermitWithoutStream: true,
		}),
		grpc.WithDefaultCallOptions(
			grpc.MaxCallRecvMsgSize(s.maxBytes),
			grpc.MaxCallSendMsgSize(s.maxBytes),
			// What is kept of a call so that it can be sent again; the default of 256 KiB is less than many a tensor.
			grpc.MaxRetryRPCBufferSize(s.maxBytes+64<<10),
		),
	}
	conn, err := grpc.NewClient(target, append(dialOptions, s.dialOptions...)...)
	if err != nil {
		return nil, fmt.Errorf("forebay: %w", err)
	}
	return &Client{
		conn:      conn,
		inference: forebayv1.NewInferenceServiceClient(conn),
		jobs:      forebayv1.NewJobServiceClient(conn),
		retry:     s.retry,
		budget:    newBudget(s.retry),
		timeout:   s.timeout,
		metadata:  s.metadata,
	}, nil
}

// Conn is the connection, for generated stubs of the contract and of gRPC's own services.
func (c *Client) Conn() *grpc.ClientConn { return c.conn }

// Close ends all calls and the connection.
func (c *Client) Close() error { return c.conn.Close() }

// call gives a context its deadline, if it has none, and the client's metadata.
func (c *Client) call(ctx context.Context) (context.Context, context.CancelFunc) {
	cancel := context.CancelFunc(func() {})
	if _, ok := ctx.Deadline(); !ok {
		ctx, cancel = context.WithTimeout(ctx, c.timeout)
	}
	return c.outgoing(ctx), cancel
}

func (c *Client) outgoing(ctx context.Context) context.Context {
	if len(c.metadata) == 0 {
		return ctx
	}
	return metadata.AppendToOutgoingContext(ctx, c.metadata...)
}
