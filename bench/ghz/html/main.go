// Command html makes a page of a report: JSON from standard input, as ghz writes it, to HTML on standard output, as ghz
// would have written it. One run of ghz gives one of the two.
package main

import (
	"encoding/json"
	"log"
	"os"

	"github.com/bojand/ghz/printer"
	"github.com/bojand/ghz/runner"
)

func main() {
	log.SetFlags(0)
	var report runner.Report
	if err := json.NewDecoder(os.Stdin).Decode(&report); err != nil {
		log.Fatalf("this is no report of ghz: %v", err)
	}
	page := printer.ReportPrinter{Out: os.Stdout, Report: &report}
	if err := page.Print("html"); err != nil {
		log.Fatal(err)
	}
}
