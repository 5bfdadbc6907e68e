// Stands for Google's clients of its other services.

module google.golang.org/api

go 1.26.0
