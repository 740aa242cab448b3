// Command composecheck reads Compose files as Docker Compose does, or with -stack as `docker stack deploy` does, and prints
// as JSON what they make of them together. A file that either would not take ends it with what is wrong.
//
// Variables are taken from the environment.
package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	compose "github.com/compose-spec/compose-go/v2/cli"
	"github.com/docker/cli/cli/compose/loader"
	"github.com/docker/cli/cli/compose/types"
)

func main() {
	stack := flag.Bool("stack", false, "read them as `docker stack deploy` does")
	flag.Parse()
	read := asCompose
	if *stack {
		read = asStack
	}
	project, err := read(flag.Args())
	if err == nil {
		encoder := json.NewEncoder(os.Stdout)
		encoder.SetIndent("", "  ")
		err = encoder.Encode(project)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func asCompose(files []string) (any, error) {
	options, err := compose.NewProjectOptions(files, compose.WithOsEnv, compose.WithName("forebay"))
	if err != nil {
		return nil, err
	}
	return options.LoadProject(context.Background())
}

func asStack(files []string) (any, error) {
	details := types.ConfigDetails{WorkingDir: filepath.Dir(files[0]), Environment: map[string]string{}}
	for _, variable := range os.Environ() {
		name, value, _ := strings.Cut(variable, "=")
		details.Environment[name] = value
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			return nil, err
		}
		tree, err := loader.ParseYAML(text)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", file, err)
		}
		details.ConfigFiles = append(details.ConfigFiles, types.ConfigFile{Filename: file, Config: tree})
	}
	return loader.Load(details)
}
