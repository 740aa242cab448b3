package forebay_test

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"iter"
	"log"
	"net"
	"net/http/httptest"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"

	forebay "github.com/forebay/forebay/clients/go"
)

// listen does something to each connection, and answers no call.
func listen(t *testing.T, act func(net.Conn)) string {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = listener.Close() })
	go func() {
		for {
			connection, err := listener.Accept()
			if err != nil {
				return
			}
			go act(connection)
		}
	}()
	return listener.Addr().String()
}

// settings is an empty SETTINGS frame, with which an HTTP/2 server begins.
var settings = []byte{0, 0, 0, 4, 0, 0, 0, 0, 0}

// closed is an address at which nobody listens.
func closed(t *testing.T) string {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = listener.Close() }()
	return listener.Addr().String()
}

func TestServersThatDoNotAnswer(t *testing.T) {
	addresses := map[string]string{"not there": closed(t), "without an address": "dns:///nobody.invalid:8500"}
	for name, act := range map[string]func(net.Conn){
		"silent": func(connection net.Conn) { _, _ = io.Copy(io.Discard, connection) },
		"half": func(connection net.Conn) {
			_, _ = connection.Write(settings)
			_, _ = io.Copy(io.Discard, connection)
		},
		"hasty": func(connection net.Conn) {
			_, _ = connection.Write(settings)
			time.Sleep(20 * time.Millisecond)
			_ = connection.Close()
		},
		"garbled": func(connection net.Conn) {
			_, _ = connection.Write([]byte("HTTP/1.1 400 Bad Request\r\n\r\n"))
			_ = connection.Close()
		},
	} {
		addresses[name] = listen(t, act)
	}
	for name, address := range addresses {
		t.Run(name, func(t *testing.T) {
			client := dial(t, address)
			var one iter.Seq[[]*forebay.Tensor] = func(yield func([]*forebay.Tensor) bool) { yield(rows(t, 1)) }
			for call, calling := range map[string]func(ctx context.Context) error{
				"predict": func(ctx context.Context) error { _, err := client.Predict(ctx, "echo", rows(t, 1)); return err },
				"submit":  func(ctx context.Context) error { _, err := client.Submit(ctx, "echo", rows(t, 1)); return err },
				"wait":    func(ctx context.Context) error { _, err := client.Wait(ctx, "0123"); return err },
				"stream":  func(ctx context.Context) error { _, _, err := collect(client.Stream(ctx, "echo", one)); return err },
				"watch": func(ctx context.Context) (last error) {
					for _, err := range client.Watch(ctx, "0123") {
						last = err
					}
					return last
				},
			} {
				t.Run(call, func(t *testing.T) {
					t.Parallel()
					start := time.Now()
					err := calling(within(t, 500*time.Millisecond))
					var failure *forebay.Error
					if !errors.As(err, &failure) ||
						failure.Code != codes.DeadlineExceeded && failure.Code != codes.Unavailable {
						t.Errorf("%v", err)
					}
					if took := time.Since(start); took > 20*time.Second {
						t.Errorf("it took %v", took)
					}
				})
			}
		})
	}
}

// mebibyte is an input of 1 MiB for a model that takes any length.
func mebibyte(t *testing.T) []*forebay.Tensor {
	t.Helper()
	tensor, err := forebay.NewTensor("x", []int64{1, 1 << 18}, make([]float32, 1<<18))
	if err != nil {
		t.Fatal(err)
	}
	return []*forebay.Tensor{tensor}
}

// proxy passes connections on to a server, and its answers as it is told, until that is done.
func proxy(t *testing.T, address string, answers func(connection io.Writer, server io.Reader)) string {
	return listen(t, func(connection net.Conn) {
		defer func() { _ = connection.Close() }()
		server, err := net.Dial("tcp", address)
		if err != nil {
			return
		}
		defer func() { _ = server.Close() }()
		go func() { _, _ = io.Copy(server, connection) }()
		answers(connection, server)
	})
}

func TestAnswersThatBreakOff(t *testing.T) {
	server := serve(t, "--set", "models.0.engine.options.shape=?")
	// cutting lets so many bytes of the answers through, on the first connections, and then closes in the middle.
	cutting := func(t *testing.T, bytes, connections int64) string {
		var count atomic.Int64
		return proxy(t, server.address, func(connection io.Writer, server io.Reader) {
			if count.Add(1) <= connections {
				_, _ = io.CopyN(connection, server, bytes)
			} else {
				_, _ = io.Copy(connection, server)
			}
		})
	}
	t.Run("once: it is sent again", func(t *testing.T) {
		client := dial(t, cutting(t, 300_000, 1))
		result, err := client.Predict(within(t, 20*time.Second), "echo", mebibyte(t))
		if err != nil || len(result.Output("y").GetData()) != 1<<20 {
			t.Errorf("%v", err)
		}
	})
	t.Run("always: it is UNAVAILABLE", func(t *testing.T) {
		client := dial(t, cutting(t, 300_000, 1<<60))
		_, err := client.Predict(within(t, 20*time.Second), "echo", mebibyte(t))
		var failure *forebay.Error
		if !errors.As(err, &failure) || failure.Code != codes.Unavailable {
			t.Errorf("%v", err)
		}
	})
	t.Run("a stream loses nothing", func(t *testing.T) {
		client := dial(t, cutting(t, 2_500_000, 2))
		source := func(yield func([]*forebay.Tensor) bool) {
			for range 10 {
				if !yield(mebibyte(t)) {
					return
				}
			}
		}
		outcomes, _, err := collect(client.Stream(within(t, 30*time.Second), "echo", source))
		if err != nil || len(outcomes) != 10 {
			t.Fatalf("%d outcomes, %v", len(outcomes), err)
		}
		for index, outcome := range outcomes {
			if outcome.Index != index || outcome.Err != nil || len(outcome.Result.Output("y").GetData()) != 1<<20 {
				t.Errorf("item %d: %v", index, outcome.Err)
			}
		}
	})
}

func TestAServerThatIsSlow(t *testing.T) {
	server := newFake(t, &fake{refuse: func(ctx context.Context, _ int) error {
		<-ctx.Done() // the caller's deadline reaches it
		return ctx.Err()
	}})
	_, err := dial(t, server.address).Predict(within(t, 200*time.Millisecond), "m", rows(t, 1))
	var failure *forebay.Error
	if !errors.As(err, &failure) || failure.Code != codes.DeadlineExceeded {
		t.Errorf("%v", err)
	}
	if calls := server.count(); calls != 1 {
		t.Errorf("%d calls", calls)
	}
}

func TestAServerThatCancelsCallsHasGoneAway(t *testing.T) {
	quitting := func() *fake {
		return newFake(t, &fake{
			refuse: func(_ context.Context, call int) error {
				if call == 0 {
					return status.Error(codes.Canceled, "stopped")
				}
				return nil
			},
			stream: func(call int, stream itemStream) error {
				if call == 0 {
					return status.Error(codes.Canceled, "stopped")
				}
				return echo(stream)
			},
		})
	}
	ctx := within(t, 20*time.Second)
	var failure *forebay.Error

	server := quitting()
	if _, err := dial(t, server.address).Predict(ctx, "m", rows(t, 1)); err != nil || server.count() != 2 {
		t.Errorf("%v after %d calls", err, server.count())
	}
	outcomes, _, err := collect(dial(t, quitting().address).Stream(ctx, "m", numbers(t, 0, 10)))
	if err != nil || len(outcomes) != 10 {
		t.Errorf("%d outcomes, %v", len(outcomes), err)
	}
	_, err = dial(t, quitting().address, forebay.WithRetry(forebay.Retry{Attempts: 1})).Predict(ctx, "m", rows(t, 1))
	if !errors.As(err, &failure) || failure.Code != codes.Unavailable {
		t.Errorf("%v", err)
	}
}

func TestACallThatIsCancelledHereIsCancelled(t *testing.T) {
	for name, cancel := range map[string]func(cancel context.CancelFunc, client *forebay.Client){
		"by its context":        func(cancel context.CancelFunc, _ *forebay.Client) { cancel() },
		"by closing its client": func(_ context.CancelFunc, client *forebay.Client) { _ = client.Close() },
	} {
		t.Run(name, func(t *testing.T) {
			called := make(chan struct{}, 1)
			server := newFake(t, &fake{refuse: func(ctx context.Context, _ int) error {
				called <- struct{}{}
				<-ctx.Done()
				return ctx.Err()
			}})
			client, err := forebay.Dial(server.address)
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = client.Close() }()
			ctx, stop := context.WithTimeout(context.Background(), 20*time.Second)
			defer stop()
			go func() {
				<-called
				cancel(stop, client)
			}()
			_, err = client.Predict(ctx, "m", rows(t, 1))
			var failure *forebay.Error
			if !errors.As(err, &failure) || failure.Code != codes.Canceled || server.count() != 1 {
				t.Errorf("%v after %d calls", err, server.count())
			}
		})
	}
}

func TestAnAnswerThatComesInDrops(t *testing.T) {
	client := dial(t, proxy(t, newFake(t, &fake{}).address, func(connection io.Writer, server io.Reader) {
		for _, err := io.CopyN(connection, server, 100); err == nil; _, err = io.CopyN(connection, server, 100) {
			time.Sleep(10 * time.Millisecond)
		}
	}))
	_, err := client.Predict(within(t, 500*time.Millisecond), "m", mebibyte(t))
	var failure *forebay.Error
	if !errors.As(err, &failure) || failure.Code != codes.DeadlineExceeded {
		t.Errorf("%v", err)
	}
}

func TestACertificateThatIsNotTrusted(t *testing.T) {
	server := httptest.NewUnstartedServer(nil)
	server.EnableHTTP2 = true
	server.Config.ErrorLog = log.New(io.Discard, "", 0) // the handshakes that fail
	server.StartTLS()
	defer server.Close()
	client := dial(t, server.Listener.Addr().String(), forebay.WithTLS(credentials.NewTLS(&tls.Config{})))
	_, err := client.Predict(within(t, 5*time.Second), "echo", rows(t, 1))
	var failure *forebay.Error
	if !errors.As(err, &failure) || failure.Code != codes.Unavailable ||
		!strings.Contains(failure.Message, "certificate signed by unknown authority") {
		t.Errorf("%v", err)
	}
}

func TestFailuresLeaveNothingBehind(t *testing.T) {
	address := serve(t).address
	fail := func() {
		client, err := forebay.Dial(address)
		if err != nil {
			t.Fatal(err)
		}
		for range 10 {
			if _, err := client.Predict(context.Background(), "other", rows(t, 1)); err == nil {
				t.Error("it did not fail")
			}
			for range client.Stream(context.Background(), "echo", numbers(t, 0, 100)) {
				break
			}
		}
		if err := client.Close(); err != nil {
			t.Error(err)
		}
	}
	fail()
	before := runtime.NumGoroutine()
	for range 5 {
		fail()
	}
	for end := time.Now().Add(10 * time.Second); runtime.NumGoroutine() > before+2; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%d goroutines, %d before", runtime.NumGoroutine(), before)
		}
	}
}
