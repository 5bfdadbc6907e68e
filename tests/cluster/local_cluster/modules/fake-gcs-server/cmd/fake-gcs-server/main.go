// fake-gcs-server serves buckets that it keeps in memory: fake-gcs-server ADDRESS:PORT.
package main

import (
	"log"
	"net/http"
	"os"

	"github.com/fsouza/fake-gcs-server/fakestorage"
)

func main() {
	if len(os.Args) != 2 {
		log.Fatal("usage: fake-gcs-server ADDRESS:PORT")
	}
	address := os.Args[1]
	// It answers to this name alone, and sends uploads there.
	server, err := fakestorage.NewServerWithOptions(fakestorage.Options{
		NoListener:  true,
		PublicHost:  address,
		ExternalURL: "http://" + address,
	})
	if err != nil {
		log.Fatal(err)
	}
	log.Fatal(http.ListenAndServe(address, server.HTTPHandler()))
}
