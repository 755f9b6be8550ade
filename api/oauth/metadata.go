package oauth

import (
	"github.com/whence-db/whence/authz"
	"github.com/whence-db/whence/authz/federation"
)

// serverMetadata is the document of RFC 8414.
type serverMetadata struct {
	Issuer               string   `json:"issuer"`
	Token                string   `json:"token_endpoint"`
	TokenAuthMethods     []string `json:"token_endpoint_auth_methods_supported"`
	TokenAuthAlgorithms  []string `json:"token_endpoint_auth_signing_alg_values_supported"`
	Revocation           string   `json:"revocation_endpoint"`
	RevocationMethods    []string `json:"revocation_endpoint_auth_methods_supported"`
	Introspection        string   `json:"introspection_endpoint"`
	IntrospectionMethods []string `json:"introspection_endpoint_auth_methods_supported"`
	JWKS                 string   `json:"jwks_uri"`
	GrantTypes           []string `json:"grant_types_supported"`
	ResponseTypes        []string `json:"response_types_supported"` // required, though there is no authorisation endpoint
	Scopes               []string `json:"scopes_supported"`
	DetailTypes          []string `json:"authorization_details_types_supported"`
	ProofAlgorithms      []string `json:"dpop_signing_alg_values_supported"`
}

func describeServer(issuer string) serverMetadata {
	return serverMetadata{
		Issuer: issuer, Token: issuer + TokenPath, JWKS: issuer + JWKSPath,
		TokenAuthMethods: []string{"private_key_jwt"}, TokenAuthAlgorithms: federation.Algorithms(),
		Revocation: issuer + RevocationPath, RevocationMethods: []string{"none"},
		// Callers there show an access token, which RFC 8414 names by its type.
		Introspection: issuer + IntrospectionPath, IntrospectionMethods: []string{"Bearer", "DPoP"},
		GrantTypes: []string{grantTokenExchange}, ResponseTypes: []string{},
		Scopes: append(actions(), scopeOperator, scopeUser), DetailTypes: []string{authz.DetailType},
		ProofAlgorithms: authz.ProofAlgorithms(),
	}
}

// resourceMetadata is the document of RFC 9728.
type resourceMetadata struct {
	Resource        string   `json:"resource"`
	Name            string   `json:"resource_name"`
	Servers         []string `json:"authorization_servers"`
	Bearer          []string `json:"bearer_methods_supported"`
	Scopes          []string `json:"scopes_supported"`
	DetailTypes     []string `json:"authorization_details_types_supported"`
	ProofRequired   bool     `json:"dpop_bound_access_tokens_required"` // a grant may ask for it
	ProofAlgorithms []string `json:"dpop_signing_alg_values_supported"`
}

// describeResource describes the installation, or what is at one of its paths. Tokens
// for either are the same: their audience is the installation.
func describeResource(issuer, path string) resourceMetadata {
	return resourceMetadata{Resource: issuer + path, Name: "Whence", Servers: []string{issuer}, Bearer: []string{"header"},
		Scopes: actions(), DetailTypes: []string{authz.DetailType}, ProofAlgorithms: authz.ProofAlgorithms()}
}

func actions() (out []string) {
	for _, a := range authz.Actions() {
		out = append(out, string(a))
	}
	return out
}
