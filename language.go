package whence

// DefaultLanguage is that of a table which names none, and of notes.
const DefaultLanguage = "english"

// Languages lists those that a table's texts can be in: the text-search
// configurations that every supported Postgres has built in, by name. "simple" is
// none: its words are compared as they are written, and all of them count.
func Languages() []string {
	return []string{"arabic", "armenian", "basque", "catalan", "danish", "dutch", "english", "finnish", "french", "german",
		"greek", "hindi", "hungarian", "indonesian", "irish", "italian", "lithuanian", "nepali", "norwegian", "portuguese",
		"romanian", "russian", "serbian", "simple", "spanish", "swedish", "tamil", "turkish", "yiddish"}
}
