package forebay_test

import (
	"bufio"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	forebay "github.com/forebay/forebay/clients/go"
)

// server is `forebay serve` in a process of its own.
type server struct {
	command *exec.Cmd
	address string
	ended   chan struct{}
}

// binary is the server's command: $FOREBAY, or that of the repository's environment. Without it nothing can be tested.
func binary(t *testing.T) string {
	t.Helper()
	path := os.Getenv("FOREBAY")
	if path == "" {
		path, _ = filepath.Abs("../../.venv/bin/forebay")
	}
	if _, err := os.Stat(path); err != nil {
		t.Skip("there is no server to test with: set FOREBAY, or run `make env`")
	}
	return path
}

// serve starts a server with an echo of four FP32 (which rejects rows of 13 and fails on rows of 7) and waits until it is
// ready.
func serve(t *testing.T, more ...string) *server {
	t.Helper()
	arguments := []string{
		"serve", "synthetic:reject=13,poison=7", "--set", "models.0.name=echo",
		"--set", "models.0.batching.max_delay_ms=2",
		"--listen", "127.0.0.1:0", "--log-format", "json",
	}
	started := &server{
		command: exec.Command(binary(t), append(arguments, more...)...),
		ended:   make(chan struct{}),
	}
	started.command.Env = append(os.Environ(), "XDG_CACHE_HOME="+t.TempDir())
	log, err := started.command.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := started.command.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(started.kill)
	ready := make(chan string, 1)
	go func() {
		defer close(started.ended)
		address := ""
		for lines := bufio.NewScanner(log); lines.Scan(); {
			var line struct{ Event, Public string }
			if json.Unmarshal(lines.Bytes(), &line) != nil {
				continue
			}
			switch line.Event {
			case "listening":
				address = line.Public
			case "model_ready":
				ready <- address
			}
		}
		_ = started.command.Wait()
	}()
	select {
	case started.address = <-ready:
	case <-started.ended:
		t.Fatal("the server ended at its start")
	case <-time.After(30 * time.Second):
		t.Fatal("the server did not become ready")
	}
	return started
}

func (s *server) kill() {
	_ = s.command.Process.Signal(syscall.SIGKILL)
	<-s.ended
}

// dial makes a client that is closed at the end of the test.
func dial(t *testing.T, address string, options ...forebay.Option) *forebay.Client {
	t.Helper()
	client, err := forebay.Dial(address, options...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := client.Close(); err != nil {
			t.Error(err)
		}
	})
	return client
}

// rows makes a tensor of rows of four equal numbers.
func rows(t *testing.T, values ...float32) []*forebay.Tensor {
	t.Helper()
	var elements []float32
	for _, value := range values {
		elements = append(elements, value, value, value, value)
	}
	tensor, err := forebay.NewTensor("x", []int64{int64(len(values)), 4}, elements)
	if err != nil {
		t.Fatal(err)
	}
	return []*forebay.Tensor{tensor}
}

// first is the first number of a result.
func first(t *testing.T, result *forebay.Result) float32 {
	t.Helper()
	values, err := forebay.Values[float32](result.Output("y"))
	if err != nil {
		t.Fatal(err)
	}
	return values[0]
}
