package forebay_test

import (
	"bufio"
	"encoding/json"
	"errors"
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

// binary is the server's command: $FOREBAY, or that of the repository's environment; empty if there is none.
func binary() string {
	path := os.Getenv("FOREBAY")
	if path == "" {
		path, _ = filepath.Abs("../../.venv/bin/forebay")
	}
	if _, err := os.Stat(path); err != nil {
		return ""
	}
	return path
}

// serve starts a server with an echo of four FP32 (which rejects rows of 13 and fails on rows of 7) and waits until it is
// ready. It is killed at the end of the test.
func serve(t *testing.T, more ...string) *server {
	t.Helper()
	if binary() == "" {
		t.Skip("there is no server to test with: set FOREBAY, or run `make env`")
	}
	started, err := start(t.TempDir(), more...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(started.kill)
	return started
}

// start starts such a server, which keeps its measurements in a folder.
func start(cache string, more ...string) (*server, error) {
	arguments := []string{
		"serve", "synthetic:reject=13,poison=7", "--set", "models.0.name=echo",
		"--set", "models.0.batching.max_delay_ms=2",
	}
	return run(cache, 1, append(arguments, more...)...)
}

// run runs the server's command until so many models are ready.
func run(cache string, models int, arguments ...string) (*server, error) {
	arguments = append([]string{arguments[0], "--listen", "127.0.0.1:0", "--log-format", "json"}, arguments[1:]...)
	started := &server{
		command: exec.Command(binary(), arguments...),
		ended:   make(chan struct{}),
	}
	started.command.Env = append(os.Environ(), "XDG_CACHE_HOME="+cache)
	log, err := started.command.StderrPipe()
	if err != nil {
		return nil, err
	}
	if err := started.command.Start(); err != nil {
		return nil, err
	}
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
				if models--; models == 0 {
					ready <- address
				}
			}
		}
		_ = started.command.Wait()
	}()
	select {
	case started.address = <-ready:
		return started, nil
	case <-started.ended:
		return nil, errors.New("the server ended at its start")
	case <-time.After(30 * time.Second):
		started.kill()
		return nil, errors.New("the server did not become ready")
	}
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
