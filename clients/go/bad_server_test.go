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
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/protobuf/proto"

	forebay "github.com/forebay/forebay/clients/go"
	forebayv1 "github.com/forebay/forebay/gen/go/forebay/v1"
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

func TestServersThatDoNotAnswer(t *testing.T) {
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
		t.Run(name, func(t *testing.T) {
			client := dial(t, listen(t, act))
			start := time.Now()
			ctx, cancel := context.WithTimeout(context.Background(), time.Second)
			defer cancel()
			var one iter.Seq[[]*forebay.Tensor] = func(yield func([]*forebay.Tensor) bool) { yield(rows(t, 1)) }
			var streamed error
			for _, err := range client.Stream(ctx, "echo", one) {
				streamed = err
			}
			_, predicted := client.Predict(ctx, "echo", rows(t, 1))
			_, submitted := client.Submit(ctx, "echo", rows(t, 1))
			_, waited := client.Wait(ctx, "0123")
			for call, err := range map[string]error{
				"stream": streamed, "predict": predicted, "submit": submitted, "wait": waited,
			} {
				var failure *forebay.Error
				if !errors.As(err, &failure) ||
					failure.Code != codes.DeadlineExceeded && failure.Code != codes.Unavailable {
					t.Errorf("%s: %v", call, err)
				}
			}
			if took := time.Since(start); took > 2500*time.Millisecond {
				t.Errorf("it took %v", took)
			}
		})
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

func TestMessagesOverTheLimit(t *testing.T) {
	client := dial(t, serve(t).address, forebay.WithMaxMessageBytes(1<<16))
	large := make([]float32, 4<<14)
	tensor, err := forebay.NewTensor("x", []int64{1 << 14, 4}, large)
	if err != nil {
		t.Fatal(err)
	}
	_, err = client.Predict(within(t, 5*time.Second), "echo", []*forebay.Tensor{tensor})
	var failure *forebay.Error
	if !errors.As(err, &failure) || failure.Code != codes.ResourceExhausted || failure.Temporary() {
		t.Errorf("%v", err)
	}
}

func TestUnknownFieldsSurvive(t *testing.T) {
	older, err := proto.Marshal(&forebayv1.PredictRequest{Model: "m"})
	if err != nil {
		t.Fatal(err)
	}
	newer := append(older, "\xa2\x38\x03new"...) // field 900, a text
	var message forebayv1.PredictRequest
	if err := proto.Unmarshal(newer, &message); err != nil {
		t.Fatal(err)
	}
	again, err := proto.Marshal(&message)
	if err != nil || string(again) != string(newer) {
		t.Errorf("%q %v", again, err)
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
