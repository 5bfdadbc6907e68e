// Package option has of Google's clients the options that the server names. Nothing comes of them.
package option

import "net/http"

type ClientOption any

func WithHTTPClient(*http.Client) ClientOption { return nil }

func WithCredentials(any) ClientOption { return nil }
