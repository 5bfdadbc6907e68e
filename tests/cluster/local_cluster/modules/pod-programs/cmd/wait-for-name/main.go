// wait-for-name ends once a host name resolves: workers wait so for their master's Service.
package main

import (
	"fmt"
	"net"
	"os"
	"time"
)

const (
	patience = 3 * time.Minute
	pause    = 250 * time.Millisecond
)

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: wait-for-name HOST")
		os.Exit(2)
	}
	host, deadline := os.Args[1], time.Now().Add(patience)
	for {
		_, err := net.LookupHost(host)
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			fmt.Fprintf(os.Stderr, "%s did not resolve within %s: %v\n", host, patience, err)
			os.Exit(1)
		}
		time.Sleep(pause)
	}
}
