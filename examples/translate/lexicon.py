"""The words of the toy English-French grammar, with the morphology that makes their forms.

The tables list only what a rule cannot derive; regular plurals, feminines and
conjugations are computed below.  Each English word has one French translation.
"""

from dataclasses import dataclass

# "haut", "huit" … would block elision; every other initial h of this lexicon is mute.
ASPIRATED_H = {"huit"}
VOWELS = set("aeiouâàéèêëîïôöûùœ")


def starts_with_vowel_sound(word):
    """Whether le/la/de/que … elide before this French word."""
    if word[0] == "h":
        return word not in ASPIRATED_H
    return word[0] in VOWELS or word == "y"


# ---------------------------------------------------------------- nouns

# One noun per line: English[/plural]  French[/plural]  gender.
NOUN_TABLE = {
    "person": """
        man/men homme m | woman/women femme f | boy garçon m | girl fille f
        child/children enfant m | friend ami m | teacher professeur m | doctor médecin m
        student étudiant m | neighbor voisin m | king roi m | queen reine f | farmer fermier m
        baker boulanger m | mother mère f | father père m | brother frère m | sister sœur f
        son fils m | grandmother grand-mère/grands-mères f | aunt tante f | uncle oncle m
        nurse infirmière f | baby bébé m | soldier soldat m | artist artiste m | lawyer avocat m
        """,
    "animal": """
        cat chat m | dog chien m | horse cheval m | bird oiseau m | cow vache f
        mouse/mice souris f | rabbit lapin m | duck canard m | bear ours m | wolf/wolves loup m
        elephant éléphant m | bee abeille f | goat chèvre f | donkey âne m
        """,
    "food": """
        apple pomme f | orange orange f | cake gâteau m | egg œuf m | tomato tomate f
        carrot carotte f | pear poire f | strawberry fraise f | cherry cerise f | lemon citron m
        onion oignon m | mushroom champignon m
        """,
    "mass": """
        bread pain m | meat viande f | cheese fromage m | rice riz m | soup soupe f
        chocolate chocolat m | salad salade f | butter beurre m | sugar sucre m | honey miel m
        """,
    "drink": """
        water eau f | milk lait m | coffee café m | tea thé m | wine vin m | beer bière f
        """,
    "text": """
        book livre m | letter lettre f | newspaper journal m | magazine magazine m
        """,
    "clothing": """
        hat chapeau m | shirt chemise f | dress robe f | coat manteau m | shoe chaussure f
        """,
    "object": """
        key clé f | bag sac m | lamp lampe f | mirror miroir m | clock horloge f
        phone téléphone m | computer ordinateur m | photo photo f | gift cadeau m | flower fleur f
        knife/knives couteau m | glass verre m | bottle bouteille f | cup tasse f
        plate assiette f | umbrella parapluie m | pen stylo m | guitar guitare f | ball balle f
        """,
    "furniture": "table table f | chair chaise f | bed lit m | desk bureau m",
    "opening": "door porte f | window fenêtre f | box boîte f",
    "vehicle": """
        car voiture f | bike vélo m | train train m | bus bus m | boat bateau m
        plane avion m | truck camion m
        """,
    # Places one can be "at" or "in" …
    "place": """
        school école f | church église f | market marché m | station gare f | hospital hôpital m
        hotel hôtel m | restaurant restaurant m | library bibliothèque f | museum musée m
        airport aéroport m | university université f | bank banque f | factory usine f | farm ferme f
        """,
    # … and places one is only "in".
    "area": """
        house maison f | garden jardin m | park parc m | city ville f | village village m
        street rue f | forest forêt f | kitchen cuisine f | bedroom chambre f | shop magasin m
        castle château m
        """,
    "part": "color couleur f | roof toit m | name nom m | price prix m | end fin f",
}

MASS_KINDS = {"mass", "drink"}


@dataclass(frozen=True)
class Noun:
    en: str
    en_plural: str
    fr: str
    fr_plural: str
    feminine: bool
    kind: str


def english_plural(word):
    if word.endswith("y") and word[-2] not in "aeiou":
        return word[:-1] + "ies"
    if word.endswith(("s", "sh", "ch", "x", "tato", "mato")):
        return word + "es"
    return word + "s"


def french_plural(word):
    if word.endswith(("s", "x", "z")):
        return word
    if word.endswith("eau"):
        return word + "x"
    if word.endswith("al"):
        return word[:-2] + "aux"
    return word + "s"


def parse_nouns():
    nouns = {}
    for kind, table in NOUN_TABLE.items():
        entries = table.replace("\n", "|").split("|")
        for entry in filter(None, (e.split() for e in entries)):
            en, _, en_plural = entry[0].partition("/")
            fr, _, fr_plural = entry[1].partition("/")
            nouns.setdefault(kind, []).append(Noun(
                en, en_plural or english_plural(en), fr, fr_plural or french_plural(fr),
                entry[2] == "f", kind))
    return nouns


NOUNS = parse_nouns()

# First names: (name, feminine).  Lower case like every other token.
NAMES = [("paul", False), ("marie", True), ("anna", True), ("lucas", False),
         ("julie", True), ("thomas", False)]

# ---------------------------------------------------------------- adjectives

THINGS = "text clothing object furniture opening vehicle place area"
SOLID = "text clothing object furniture opening vehicle"

# English [comparative] | masculine [feminine] | before or after the noun | kinds of noun
# A leading "pred" or "attr" restricts the adjective to predicative or attributive use.
ADJECTIVE_TABLE = f"""
    red | rouge | after | {SOLID} food
    blue | bleu | after | {SOLID}
    green | vert | after | {SOLID} food
    black | noir noire | after | {SOLID} animal
    white | blanc blanche | after | {SOLID} animal
    yellow | jaune | after | {SOLID} food
    gray | gris | after | {SOLID} animal
    small smaller | petit | before | {THINGS} animal food
    big bigger | grand | before | {THINGS} animal
    old older | vieux vieille | before | {THINGS} animal person
    beautiful | beau belle | before | {THINGS} animal person
    attr new | nouveau nouvelle | before | {THINGS}
    good | bon bonne | before | food mass drink text vehicle place person
    bad | mauvais | before | food mass drink text
    young younger | jeune | before | animal person
    pretty prettier | joli | before | clothing object furniture area
    pred tall taller | grand | after | person
    expensive | cher chère | after | {SOLID} drink mass
    heavy heavier | lourd | after | object furniture text
    clean cleaner | propre | after | clothing object furniture vehicle place area
    dirty dirtier | sale | after | clothing object furniture vehicle place area
    broken | cassé | after | object furniture opening
    useful | utile | after | object text furniture
    modern | moderne | after | vehicle place
    dangerous | dangereux dangereuse | after | animal vehicle area
    fast faster | rapide | after | vehicle animal
    slow slower | lent | after | vehicle animal
    hot hotter | chaud | after | mass drink
    cold colder | froid | after | mass drink
    fresh fresher | frais fraîche | after | food mass
    delicious | délicieux délicieuse | after | food mass drink
    quiet quieter | calme | after | place area person
    strong stronger | fort | after | person animal
    happy happier | heureux heureuse | after | person animal
    sad sadder | triste | after | person animal
    tired | fatigué | after | person animal
    sick | malade | after | person animal
    intelligent | intelligent | after | person animal
    funny funnier | drôle | after | person text
    rich richer | riche | after | person
    poor poorer | pauvre | after | person
    kind kinder | gentil gentille | after | person
    famous | célèbre | after | person text place
    serious | sérieux sérieuse | after | person
    lazy lazier | paresseux paresseuse | after | person animal
    jealous | jaloux jalouse | after | person
    pred ready | prêt | after | person
    worried | inquiet inquiète | after | person
    pred proud prouder | fier fière | after | person
"""

COLORS = {"red", "blue", "green", "black", "white", "yellow", "gray"}

# At most one adjective of a group is said of a thing.
EXCLUSIVE_ADJECTIVES = [
    COLORS, {"small", "big", "tall"}, {"old", "new", "young", "modern", "fresh"},
    {"good", "bad", "delicious"}, {"clean", "dirty"}, {"fast", "slow"}, {"hot", "cold"},
    {"happy", "sad"}, {"rich", "poor"}, {"beautiful", "pretty"}, {"broken", "useful"},
]

# Adjectives without "very", "too" or a comparative.
UNGRADED_ADJECTIVES = COLORS | {"delicious", "broken", "ready"}

# Masculine singular forms used before a vowel sound: un bel homme.
LIAISON_FORMS = {"beau": "bel", "nouveau": "nouvel", "vieux": "vieil"}


@dataclass(frozen=True)
class Adjective:
    en: str
    comparative: str  # "" when formed with "more"
    masculine: str
    feminine: str
    before: bool
    kinds: frozenset
    attributive: bool
    predicative: bool

    def agree(self, feminine, plural, next_word=None):
        """The French form; next_word is the noun when the adjective precedes it."""
        form = self.feminine if feminine else self.masculine
        if plural:
            return french_plural(form)
        if next_word and starts_with_vowel_sound(next_word):
            return LIAISON_FORMS.get(form, form)
        return form


def parse_adjectives():
    adjectives = []
    for line in filter(str.strip, ADJECTIVE_TABLE.splitlines()):
        english, french, position, kinds = (field.split() for field in line.split("|"))
        usage = english.pop(0) if english[0] in ("attr", "pred") else ""
        masculine = french[0]
        regular = masculine if masculine.endswith("e") else masculine + "e"
        adjectives.append(Adjective(
            english[0], english[1] if len(english) > 1 else "",
            masculine, french[1] if len(french) > 1 else regular,
            position == ["before"], frozenset(kinds), usage != "pred", usage != "attr"))
    return adjectives


ADJECTIVES = parse_adjectives()

# ---------------------------------------------------------------- verbs

# French persons used here, in this order.  "you" is always « vous », so « tu » has no forms.
JE, IL, NOUS, VOUS, ILS = range(5)

# English [past] | infinitive [five present forms] | past participle | subjects | kind of objects
# The English past is given when irregular; "-" means the verb is not used in the past.
# A trailing word after "+" belongs to the English verb (look +for); a French preposition
# that introduces the object follows the infinitive after "+" (parler +à).
# "stative" verbs have no progressive form in English.
TRANSITIVE_TABLE = """
    eat ate | manger | mangé | animate | food mass
    drink drank | boire bois boit buvons buvez boivent | bu | animate | drink
    read - | lire lis lit lisons lisez lisent | lu | human | text
    write wrote | écrire écris écrit écrivons écrivez écrivent | écrit | human | text
    see saw stative | voir vois voit voyons voyez voient | vu | animate | person animal vehicle area object
    watch | regarder | regardé | animate | person animal vehicle
    look +for | chercher | cherché | animate | person animal object clothing text
    find found | trouver | trouvé | human | person animal object clothing text
    buy bought | acheter achète achète achetons achetez achètent | acheté | human | object clothing vehicle food mass drink furniture
    sell sold | vendre vends vend vendons vendez vendent | vendu | human | object clothing vehicle food mass furniture
    have - stative | avoir ai a avons avez ont | eu | human | animal vehicle object clothing text
    want - stative | vouloir veux veut voulons voulez veulent | voulu | human | vehicle object food mass drink
    know - stative | connaître connais connaît connaissons connaissez connaissent | connu | human | person place area
    visit | visiter | visité | human | place area
    open | ouvrir ouvre ouvre ouvrons ouvrez ouvrent | ouvert | human | opening
    close | fermer | fermé | human | opening
    take took | prendre prends prend prenons prenez prennent | pris | human | object vehicle text
    wear wore | porter | porté | human | clothing
    wash | laver | lavé | human | clothing vehicle food
    lose lost | perdre perds perd perdons perdez perdent | perdu | human | object clothing text
    prepare | préparer | préparé | human | mass food
    help | aider | aidé | human | person
    call | appeler appelle appelle appelons appelez appellent | appelé | human | person
    meet met | rencontrer | rencontré | human | person
    hear heard stative | entendre entends entend entendons entendez entendent | entendu | animate | person animal vehicle
    listen +to | écouter | écouté | human | person
    wait +for | attendre attends attend attendons attendez attendent | attendu | animate | person vehicle
    follow | suivre suis suit suivons suivez suivent | suivi | animate | person animal vehicle
    choose chose | choisir choisis choisit choisissons choisissez choisissent | choisi | human | object clothing vehicle text food
    draw drew | dessiner | dessiné | human | animal vehicle object person area
    speak spoke +to | parler +à | parlé | human | person
    think thought +of | penser +à | pensé | human | person animal
    need - stative | avoir ai a avons avez ont besoin +de | eu | human | person vehicle object mass drink clothing
"""

# Verbs of liking: their bare English objects are generic, « les chats », « le pain ».
LIKING_TABLE = """
    like - stative | aimer | aimé | animate | animal food mass drink person text vehicle
    love - stative | adorer | adoré | animate | animal food mass drink person text vehicle
    hate - stative | détester | détesté | animate | animal food mass drink vehicle
    prefer - stative | préférer préfère préfère préférons préférez préfèrent | préféré | human | animal food mass drink vehicle
"""

# Somebody gives something to somebody.
GIVING_TABLE = """
    give gave | donner | donné | human | object text food clothing
    show showed | montrer | montré | human | object text vehicle animal
    send sent | envoyer envoie envoie envoyons envoyez envoient | envoyé | human | object text
    sell sold | vendre vends vend vendons vendez vendent | vendu | human | object vehicle food
"""

# A "*" before the infinitive marks the verbs conjugated with être in the past.
INTRANSITIVE_TABLE = """
    sleep slept | dormir dors dort dormons dormez dorment | dormi | animate |
    work | travailler | travaillé | human |
    walk | marcher | marché | animate |
    sing sang | chanter | chanté | human |
    dance | danser | dansé | human |
    run ran | courir cours court courons courez courent | couru | animate |
    swim swam | nager | nagé | animate |
    laugh | rire ris rit rions riez rient | ri | human |
    cry | pleurer | pleuré | human |
    play | jouer | joué | animate |
    study | étudier | étudié | human |
    wait | attendre attends attend attendons attendez attendent | attendu | animate |
    leave left | *partir pars part partons partez partent | parti | moving |
    arrive | *arriver | arrivé | moving |
    fall fell | *tomber | tombé | animate |
    stay | *rester | resté | animate |
"""

# Verbs whose complement is a place, with the preposition each language wants.
MOTION_TABLE = """
    go went +to | *aller vais va allons allez vont +à | allé | human | place
    come came +from | *venir viens vient venons venez viennent +de | venu | human | place area
    arrive +at | *arriver +à | arrivé | moving | place
    return +to | *retourner +à | retourné | human | place
    enter | *entrer +dans | entré | animate | place area
    live - +in | habiter +dans | habité | human | area
"""

# Verbs that govern a clause: i think that …
OPINION_TABLE = """
    think - stative | penser | pensé | human |
    know - stative | savoir sais sait savons savez savent | su | human |
    hope - stative | espérer espère espère espérons espérez espèrent | espéré | human |
    say - stative | dire dis dit disons dites disent | dit | human |
"""

DOUBLED_BEFORE_ING = {"run", "swim"}


@dataclass(frozen=True)
class Verb:
    base: str
    third: str
    past: str  # "" when the verb is not used in the past
    progressive: str  # "" for stative verbs
    particle: tuple  # English words after the verb
    infinitive: tuple
    present: tuple  # five French forms, each a tuple of tokens
    participle: str
    with_etre: bool
    preposition: tuple  # French words before the object
    subjects: str
    kinds: tuple


def english_third(base):
    if base == "have":
        return "has"
    if base.endswith(("s", "sh", "ch", "x", "o")):
        return base + "es"
    if base.endswith("y") and base[-2] not in "aeiou":
        return base[:-1] + "ies"
    return base + "s"


def english_past(base):
    if base.endswith("e"):
        return base + "d"
    if base.endswith("y") and base[-2] not in "aeiou":
        return base[:-1] + "ied"
    return base + "ed"


def english_progressive(base):
    if base in DOUBLED_BEFORE_ING:
        return base + base[-1] + "ing"
    if base.endswith("e") and not base.endswith("ee"):
        return base[:-1] + "ing"
    return base + "ing"


def regular_er_present(infinitive):
    stem = infinitive[:-2]
    nous = stem + ("eons" if stem.endswith("g") else "ons")
    return [stem + "e", stem + "e", nous, stem + "ez", stem + "ent"]


def parse_verbs(table):
    verbs = []
    for line in filter(str.strip, table.splitlines()):
        english, french, participle, subjects, kinds = (f.split() for f in line.split("|"))
        base = english[0]
        particle = tuple(w[1:] for w in english if w.startswith("+"))
        stative = "stative" in english
        plain = [w for w in english[1:] if not w.startswith("+") and w != "stative"]
        past = plain[0] if plain else english_past(base)
        preposition = tuple(w[1:] for w in french if w.startswith("+"))
        words = [w for w in french if not w.startswith("+")]
        with_etre = words[0].startswith("*")
        infinitive = words[0].lstrip("*")
        present = words[1:6] or regular_er_present(infinitive)
        # avoir besoin de: "besoin" behaves like part of the preposition, after « pas ».
        preposition = tuple(words[6:]) + preposition
        verbs.append(Verb(
            base, english_third(base), "" if past == "-" else past,
            "" if stative else english_progressive(base), particle, infinitive, tuple(present),
            participle[0], with_etre, preposition, subjects[0], tuple(kinds)))
    return verbs


TRANSITIVE = parse_verbs(TRANSITIVE_TABLE)
LIKING = parse_verbs(LIKING_TABLE)
GIVING = parse_verbs(GIVING_TABLE)
INTRANSITIVE = parse_verbs(INTRANSITIVE_TABLE)
MOTION = parse_verbs(MOTION_TABLE)
OPINION = parse_verbs(OPINION_TABLE)

ETRE = ["suis", "est", "sommes", "êtes", "sont"]
ETRE_IMPERFECT = ["étais", "était", "étions", "étiez", "étaient"]
AVOIR = ["ai", "a", "avons", "avez", "ont"]
ALLER = ["vais", "va", "allons", "allez", "vont"]
MODALS = {
    "can": ["peux", "peut", "pouvons", "pouvez", "peuvent"],
    "must": ["dois", "doit", "devons", "devez", "doivent"],
    "want": ["veux", "veut", "voulons", "voulez", "veulent"],
}

# ---------------------------------------------------------------- small closed classes

NUMBERS = {"two": "deux", "three": "trois", "four": "quatre", "five": "cinq", "six": "six",
           "seven": "sept", "eight": "huit", "nine": "neuf", "ten": "dix"}

# Possessives: masculine (and feminine before a vowel), feminine, plural.
POSSESSIVES = {"my": ("mon", "ma", "mes"), "your": ("votre", "votre", "vos"),
               "his": ("son", "sa", "ses"), "her": ("son", "sa", "ses"),
               "our": ("notre", "notre", "nos"), "their": ("leur", "leur", "leurs")}

# To be hungry is to "have hunger" in French.
STATES = {"hungry": "faim", "thirsty": "soif", "afraid": "peur", "right": "raison",
          "wrong": "tort"}

WEATHER = {"it is raining": "il pleut", "it is snowing": "il neige",
           "it is cold": "il fait froid", "it is hot": "il fait chaud",
           "it is late": "il est tard", "it is early": "il est tôt"}

OUTDOORS = {"garden", "park", "city", "village", "street", "forest"}

GREETINGS = {"hello": "bonjour", "good evening": "bonsoir", "good night": "bonne nuit",
             "goodbye": "au revoir", "thank you": "merci", "welcome": "bienvenue",
             "see you soon": "à bientôt", "see you tomorrow": "à demain"}

ADDRESSEES = {"world": "le monde", "everyone": "tout le monde", "madam": "madame",
              "sir": "monsieur", "my friend": "mon ami", "my friends": "mes amis",
              **{name: name for name, _ in NAMES}}

# Adverbs of time that follow the verb phrase, by the tense they go with.
TIMES = {
    "present": {"every day": "tous les jours", "in the morning": "le matin",
                "in the evening": "le soir", "at night": "la nuit"},
    "progressive": {"now": "maintenant", "this morning": "ce matin", "this evening": "ce soir"},
    "past": {"yesterday": "hier", "this morning": "ce matin", "last night": "hier soir"},
    "future": {"tomorrow": "demain", "this evening": "ce soir", "soon": "bientôt"},
}
