// Package storage has of Google's client the types that the server's own are made from. There is no client.
package storage

import (
	"context"
	"errors"
	"time"

	"google.golang.org/api/option"
)

type (
	ACLEntity  string
	ACLRole    string
	Projection int
	Client     struct{}
)

const (
	AllUsers              ACLEntity = "allUsers"
	AllAuthenticatedUsers ACLEntity = "allAuthenticatedUsers"

	RoleOwner  ACLRole = "OWNER"
	RoleReader ACLRole = "READER"
	RoleWriter ACLRole = "WRITER"

	ProjectionFull  Projection = 1
	ProjectionNoACL Projection = 2
)

type ProjectTeam struct {
	ProjectNumber string
	Team          string
}

type ACLRule struct {
	Entity      ACLEntity
	EntityID    string
	Role        ACLRole
	Domain      string
	Email       string
	ProjectTeam *ProjectTeam
}

type ObjectRetention struct {
	Mode        string
	RetainUntil time.Time
}

func NewClient(context.Context, ...option.ClientOption) (*Client, error) {
	return nil, errors.New("this server was built without a client")
}
