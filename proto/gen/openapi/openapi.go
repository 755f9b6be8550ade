// Package openapi holds the description of the server's calls as plain HTTP
// clients see them, so that a server can hand out the one that it was built
// with. The description is generated from the contract, never edited.
package openapi

import _ "embed"

// YAML is the OpenAPI 3.1 document.
//
//go:embed openapi.yaml
var YAML []byte
