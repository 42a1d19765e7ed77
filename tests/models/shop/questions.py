"""What customers ask, as patterns: `{a|b|}` stands for one of its alternatives, `<word>` for a company's fact."""

DAY = "{on weekdays|during the week|on Mondays|on Tuesday|on Wednesdays|on Thursday|on Fridays|today|tomorrow|tonight|this evening|}"
SHOP = "{you|the shop|the store|your shop|your store}"
BOUGHT = "{what|the thing|the item|the things|something} I {ordered|bought|got} {yesterday|today|last week|from you|here|}"
SOMETHING = "{something|an item|a product|a parcel|my order|my purchase|things|it|this|the <product>|a <product>|" + BOUGHT + "}"

QUESTIONS = {
    "greeting": [
        "{hi|hello|hey|hi there|hello there|good morning|good afternoon|good evening|good day|greetings}",
        "{hi|hello|hey}, {how are you|can you help me|I have a question|I need help|I need some help|are you there}",
        "{can|could} you help me", "I {have a|have got a|got a} question", "I need {help|some help|assistance}",
        "is {anyone|anybody|somebody} there", "how are you {today|}", "help", "{hi|hello} <company>",
    ],
    "thanks": [
        "{thanks|thank you|many thanks|thank you very much|thanks a lot|cheers}",
        "{great|perfect|good|ok|okay|super|wonderful}, {thanks|thank you|that helps}",
        "that {helps|is helpful|was helpful|is all|was all I needed}", "{thanks|thank you} for {your help|the help|the answer}",
        "{great|perfect|good to know|very helpful|wonderful|ok|okay}",
    ],
    "goodbye": [
        "{bye|goodbye|see you|bye bye|good night|see you later|see you soon}", "{that is all|nothing else}, {bye|goodbye}",
        "{thanks|thank you}, {bye|goodbye|see you}", "have a {nice|good|great} {day|evening|weekend}",
    ],
    "identity": [
        "who are you", "what are you", "what is {your name|this|this shop|your company called|the name of the shop}",
        "who am I {talking|speaking|writing} to", "{which|what} {company|shop|store} {is this|are you|do you work for|am I talking to}",
        "are you {a human|a robot|a bot|a real person|a machine|an assistant|human}", "is this <company>",
        "tell me about {yourself|your company|your shop|you}", "what can you {do|help me with|tell me|help with}",
        "introduce yourself", "who {runs|owns} this shop",
    ],
    "hours": [
        "when {are|is} " + SHOP + " open " + DAY, "what are {your|the} {opening hours|hours|opening times|business hours|shop hours} " + DAY,
        "{when|at what time|what time|how early} do you {open|close|shut} " + DAY,
        "{until when|how long|how late|till when} {are you|is the shop|is the store} open " + DAY,
        "until when can I {shop|come|visit|buy things|come by} " + DAY, "{tell me|give me|I need|what about} {your|the} {opening hours|opening times|hours}",
        "{are|is} " + SHOP + " open {today|now|right now|tomorrow|on Monday|on Friday|in the morning|in the evening|tonight|this afternoon}",
        "can I {come|visit|visit you|shop|drop by} {on Monday|on Friday|tomorrow|today|in the evening|after work|early in the morning}",
        "opening {hours|times}", "hours", "{from when|when} can I {come|come in|visit the shop|visit you|drop by} " + DAY,
        "do you close {early|late} " + DAY, "what time does {the shop|the store|your shop} {open|close|shut} " + DAY,
        "when does {the shop|the store|your store|it} {open|close} " + DAY,
    ],
    "saturday": [
        "{are|is} " + SHOP + " open {on Saturday|on Saturdays|this Saturday|Saturday|at the weekend|on the weekend|on weekends}",
        "until when can I {shop|come|visit|buy things} {on Saturday|on Saturdays|this Saturday}",
        "{when|what time|at what time|how long|until when|how late} {are|is} " + SHOP + " open {on Saturday|on Saturdays|on the weekend|at the weekend}",
        "{what time|when|at what time|how late} do you {open|close|shut} {on Saturday|on Saturdays|at the weekend}",
        "{and|what about|how about|and on} {Saturday|Saturdays|the weekend|weekends}", "Saturday {hours|opening hours|opening times}",
        "what are {your|the} {hours|opening hours|opening times} {on Saturday|on Saturdays|for Saturday|at the weekend}",
        "can I {come|visit|shop|come by|drop by} on {Saturday|Saturdays|a Saturday|Saturday morning|Saturday afternoon}",
        "do you work {on Saturday|on Saturdays|at weekends}",
        "when does {the shop|the store|your store} {open|close} {on Saturday|on Saturdays}",
    ],
    "sunday": [
        "{are|is} " + SHOP + " open {on Sunday|on Sundays|this Sunday|Sunday}",
        "{when|what time|at what time|how long|until when|how late} {are|is} " + SHOP + " open {on Sunday|on Sundays}",
        "{what time|when|at what time|how late} do you {open|close|shut} {on Sunday|on Sundays}",
        "{and|what about|how about|and on} {Sunday|Sundays}", "Sunday {hours|opening hours|opening times}",
        "what are {your|the} {hours|opening hours|opening times} {on Sunday|on Sundays|for Sunday}",
        "can I {come|visit|shop|come by|drop by|buy something} on {Sunday|Sundays|a Sunday|Sunday morning|Sunday afternoon}",
        "do you work {on Sunday|on Sundays}", "{are you|is the shop} closed {on Sunday|on Sundays}",
        "when does {the shop|the store|your store} {open|close} {on Sunday|on Sundays}",
        "until when can I {shop|come|visit} {on Sunday|on Sundays}",
    ],
    "returns": [
        "{can|may|could} I {return|send back|bring back|give back|exchange} " + SOMETHING,
        "how {long|many days} {do I have|have I got|have I} to {return|send back|bring back|exchange} " + SOMETHING,
        "what is {your|the} {return|returns|exchange} {policy|period|window|deadline}", "how do I {return|send back|exchange} " + SOMETHING,
        "{until when|for how long|how long} can I {return|send back|bring back|exchange} " + SOMETHING,
        "I {want|would like|need|wish} to {return|send back|bring back|exchange|give back} " + SOMETHING,
        "I do not {like|want} " + SOMETHING + " {anymore|any more|}", "{returns|return policy|returning an item}",
        "{it|the <product>|my order} does not fit, can I {return|send back|exchange} it", "I changed my mind{| about my order|, can I send it back}",
        "do you {take|accept} returns", "is it possible to {return|exchange|send back} " + SOMETHING,
        "what if I do not like {it|the <product>|my order}",
    ],
    "refund": [
        "{when|how soon|how fast} do I get {my money|my money back|a refund|my refund|the refund}",
        "how long does {a|the|my} refund take", "where is my {refund|money}", "{when|how} will I be {refunded|paid back}",
        "I {am waiting|wait} for my {refund|money}", "I {sent|returned|gave} {it|my order|the <product>} back, when do I get my money",
        "{can|do} I get {my money back|a refund}", "I want {my money back|a refund}", "how long {until|before} I get my {refund|money} back",
        "when will {the|my} {refund|money} {arrive|come|be paid}",
    ],
    "shipping": [
        "how long does {shipping|delivery|the delivery|a delivery|postage|sending} take", "how {fast|quick|quickly} {do you ship|do you deliver|is shipping|is delivery|is the delivery}",
        "when will my {order|parcel|package|<product>} {arrive|come|be delivered|be here|get here}", "how {long|many days} {until|before|till} my {order|parcel|package|<product>} {arrives|comes|is here}",
        "what {is|are} {your|the} {delivery time|shipping time|delivery times|shipping times}", "{shipping|delivery} time",
        "how soon {can|will|could} {I get|you deliver|you send|I have} {it|my order|the <product>|a <product>}",
        "if I order {today|now|tomorrow}, when {do I get it|will it arrive|does it come|will I have it}", "how many days does {shipping|delivery|the parcel|it} {take|need}",
        "when {can I expect|should I expect|do I get} my {order|parcel|package|delivery|<product>}", "do you {ship|deliver} {fast|quickly|}",
    ],
    "postage": [
        "how much {is|are|does} {shipping|delivery|postage} {cost|}", "what does {shipping|delivery|postage|the delivery|sending a parcel} cost",
        "what {are|is} {your|the} {shipping costs|delivery costs|delivery fee|shipping fee|cost of delivery|price of shipping|postage}",
        "is {shipping|delivery|postage} free", "do I {have to|need to} pay for {shipping|delivery|postage}", "do you {charge|take money} for {shipping|delivery|postage}",
        "{shipping|delivery} {costs|cost|fee|price}", "do you {ship|deliver|send} for free", "how {expensive|much} is {shipping|the delivery|delivery}",
    ],
    "order": [
        "where is my {order|parcel|package|delivery|<product>}", "{can|could} you {track|find|check} my {order|parcel|package|delivery}",
        "{track|check|find} my {order|parcel|package}", "how {can|do} I track my {order|parcel|package}", "what is the {status|state} of my {order|delivery|parcel}",
        "my {order|parcel|package|delivery|<product>} {did not arrive|has not arrived|is late|is missing|never came|is lost|has not come yet}",
        "my {order|parcel|package|delivery|<product>} still has not {arrived|come|turned up|shown up|reached me}", "{nothing|no parcel} has {arrived|come|turned up} {yet|so far|}",
        "I ordered {a <product>|something} {last week|a month ago|ten days ago} and {nothing came|it is not here|it has not arrived|it did not come}",
        "has my {order|parcel|package} {been sent|been shipped|left} {yet|}", "I {have not got|did not get|am still waiting for|am waiting for} my {order|parcel|package|<product>} {yet|}",
    ],
    "cancel": [
        "{can|may|could} I {cancel|stop|change} my {order|purchase}", "how {can|do} I {cancel|stop|change} {my|an} order",
        "I {want|would like|need|wish} to {cancel|stop|change} my {order|purchase}", "{please|} cancel {my order|my purchase|" + BOUGHT + "}", "I {want|would like|need} to cancel " + BOUGHT, "I {do not|no longer} {want|need} " + BOUGHT, "cancel {my order|the order|order}",
        "I {ordered|bought} {the wrong thing|the wrong size|too much|it twice|it by mistake}", "is it {too late|possible} to {cancel|change} my order",
    ],
    "phone": [
        "what is {your|the} {phone number|telephone number|number|phone|hotline}", "{can|may|could} I {call|phone|ring} you", "how {can|do} I {call|phone|ring|reach|contact|get in touch with} you",
        "{give me|tell me|I need|do you have} {your|a|the} {phone number|telephone number|number to call|hotline}", "{phone|telephone|phone number|contact|hotline}",
        "I {want|would like|need} to {call|phone|contact|reach} {you|someone|somebody}", "which number {do I|should I|can I} {call|dial|ring}", "how can I {contact|reach} {customer service|support|the shop|your team}",
        "{where|what number} {can|do} I call", "is there a {number|phone number|hotline} {I can call|to call|}",
    ],
    "email": [
        "what is {your|the} {email|email address|e-mail|mail address}", "{can|may|could} I {write|email|send an email to|mail} you",
        "{give me|tell me|I need|do you have} {your|an|the} {email|email address|e-mail address}", "where {can|do|should} I {write|send an email|send my mail} {to|}",
        "how {can|do} I {write to|email|mail} you", "{email|email address|e-mail}", "I {want|would like} to {write|email} you", "{which|what} {email|email address|mail address} {can|do|should|must} I {write to|use|use for emails|use to contact you|send it to}",
    ],
    "human": [
        "{can|may|could} I {talk|speak} to {a human|a person|a real person|someone|somebody|an agent|your manager|the boss}",
        "I {want|would like|need} to {talk|speak} to {a human|a person|a real person|someone|somebody|an agent|a manager}", "{human|agent|operator|real person} please",
        "{connect|transfer} me to {a human|a person|an agent|customer service|someone}", "I want to {complain|make a complaint}", "I have a complaint", "get me {a human|a manager|somebody}",
    ],
    "warranty": [
        "{is there|do you give|do you offer|do I get|do I have} {a|any} {warranty|guarantee}", "how long is {the|your} {warranty|guarantee} {on|for|of|} {the <product>|your products|it|}",
        "what is {the|your} {warranty|guarantee|warranty period}", "{warranty|guarantee}", "does {the <product>|it|a <product>} {have|come with} {a|any} {warranty|guarantee}",
        "how many years of {warranty|guarantee} {do I get|do you give|are there|is there}", "how long {does the warranty last|does the guarantee last|am I covered}", "is {the <product>|it|this} {still|} under {warranty|guarantee}",
        "what does the {warranty|guarantee} cover",
    ],
    "damaged": [
        "{my|the} {order|parcel|<product>|product|item} {is|arrived|came} {broken|damaged|defective|faulty|cracked}", "{it|the <product>|my <product>} {does not work|stopped working|broke|is broken|fell apart|is defective|has a fault}",
        "I {got|received|have} a {broken|damaged|defective|faulty} {product|item|<product>|parcel}", "{something is|there is something} {wrong with|broken on} {it|my order|the <product>|my <product>}",
        "I {got|received} the wrong {item|product|thing|size|colour|order}", "{what do I do|what should I do|what happens|what} if {it|the <product>|my order} {is broken|is damaged|does not work|breaks}",
        "can you {repair|fix|replace} {it|my <product>|the <product>}",
    ],
    "goods": [
        "what do you {sell|have|offer}", "what {can I buy|products do you have|products do you sell|things do you sell|kind of shop is this|is in your shop|goods do you have}",
        "{which|what} {products|goods|things|items} do you {sell|have|offer}", "what {is there to buy|do you have in your shop|is your shop about}", "{tell me about|show me} {your products|your goods|your range|what you sell}",
        "{products|range|catalogue}", "what kind of {things|products|goods} {do you sell|do you have|can I buy}",
        "do you sell <goods>",
    ],
    "product": [
        "{tell me about|what is|describe|I want to know more about} the <product>", "{can|could} you {tell me|say} {more|something} about the <product>", "what {can you tell me|do you know} about the <product>",
        "is the <product> {good|any good|worth it}", "{what can|what does} the <product> do", "{what|which} {product|item} {do you recommend|is the best|would you recommend|is your best seller|is popular|is new}", "what do you recommend", "what is {your best product|your best seller|new|special}",
        "{recommend|suggest} {something|a product|a gift|a present}", "I am looking for a {gift|present}", "the <product>",
        "{what is special about|why should I buy|how good is} the <product>",
    ],
    "price": [
        "how much {is|does} the <product> {cost|}", "what {does|is} the {price of the|} <product> {cost|}", "what is the price of {the|a} <product>", "{price|cost} of the <product>",
        "how {expensive|much} is {the|a} <product>", "what do I {pay|have to pay} for {the|a} <product>", "<product> price", "how much do you {want|charge|ask} for {the|a} <product>",
        "what are your prices", "how much does {it|your best product|a <product>} cost",
    ],
    "payment": [
        "how {can|do} I pay", "{which|what} {payment methods|payments|ways to pay|cards|payment options} {do you accept|do you take|are there|do you have}", "do you {accept|take} {cash|cards|credit cards|card|PayPal|Visa|cheques|coins|bank transfer|gift cards|a credit card}",
        "{can|may|could} I pay {by card|in cash|with a credit card|by bank transfer|with cash|with a gift card|cash|online|later}", "{payment|payment methods|payment options}", "what are the {payment methods|payment options|ways to pay}",
        "is {cash|a card|card payment|bank transfer} {ok|okay|possible|accepted}", "I {want|would like} to pay {by card|in cash|with cash|by bank transfer}",
    ],
    "address": [
        "where are you", "where is {your|the} {shop|store|office}", "what is {your|the} {address|location}", "how {can|do} I {find|get to} {you|your shop|the shop|the store}", "{address|location|directions}",
        "{which|what} street {are you in|are you on|is the shop on|is the shop in}", "where {can|do} I {find|visit} {you|your shop|the shop|your store}", "{tell me|give me|I need} {your|the} address {of the shop|of your store|}",
        "do you have {a shop|a store|a real shop} {I can visit|nearby|in town|}", "where are you located", "where is <company>", "where do I have to go",
    ],
    "other_goods": [
        "do you {sell|have|offer|stock} <thing>", "{can|could} I {buy|get|order} <thing> {here|from you|in your shop|}", "I {am looking for|want to buy|need|would like} <thing>", "how much {are|do} <thing> {cost|}", "have you got {any|} <thing>",
    ],
    "unknown": [
        "what is the {weather|weather like|temperature} {today|tomorrow|in <city>|outside|}", "will it {rain|snow} {today|tomorrow|}", "{what is|name|tell me} the capital of <country>", "{where|how big|how far away} is <city>", "how {big|old|far away} is <country>", "{tell|can you tell} me {a joke|a story|something funny}",
        "{can you|could you|please|} {write|make|create|compose} {me|us|} {a poem|a song|a story|an essay|some code|a program|a letter|a recipe} {for me|about love|about the sea|about a cat|about <subject>|in Python|}",
        "{what|which} is the {capital|president|population|language|flag|biggest city|king|currency} of <country>", "what is {two plus two|seven times eight|the square root of nine|12 plus 30|5 times 6|the meaning of life|love|a black hole|the moon}",
        "{can|could|would} you {write|tell|sing|read} {me|us} {a|another} {poem|song|story|joke|riddle|fairy tale|letter}",
        "who {won|will win} the {match|game|election|world cup|race}", "who is {the president|the king|the prime minister} of <country>", "{how do I|can you help me} {cook rice|bake bread|learn to swim|fix my car|do my homework|lose weight|learn a language|find a job}",
        "what {should I|can I} {eat|cook|wear|read|watch} {today|tonight|tomorrow|}", "{sing|dance|play} {a song|music|a game|for me|with me|something}", "do you {love me|like music|like dogs|believe in ghosts|dream|sleep}", "{translate|say} {this|hello|good morning} {to|in|into} {French|German|Spanish|Latin}",
        "I {have a headache|feel sick|am sad|am bored|am hungry|am tired}", "what is {your|the} {favourite colour|stock price|share price|exchange rate|news|date today|time in <city>}", "{which|what} {team|party|film|book} {do you like|is the best}", "when {was|did} {the war|Rome|the first train|the moon landing} {start|built|end|}",
        "is there {life on Mars|a god|a train to <city>}", "why is the {sky blue|sea salty|grass green|earth round}", "<nonsense>", "<nonsense> <nonsense>",
        "{can|could} you {explain|teach me|describe|tell me about|help me with} <subject>", "{what is|what are|explain|tell me about|how does|how do} <subject> {work|}", "what do you think {of|about} <subject>", "<subject>",
        "do you know {anything|something|a lot|} about <subject>", "I {want|would like} to {learn|talk|know more} about <subject>",
    ],
}

THINGS = (
    "bananas,shoes,cars,bread,fish,computers,phones,guitars,hats,cheese,paint,ladders,sofas,shirts,socks,medicine,tickets,"
    "beer,pizza,cameras,printers,pianos,boats,carpets,curtains,knives,dolls,dogs,cats,umbrellas,mirrors,washing machines,"
    "fridges,jackets,apples,eggs,milk,stamps,tyres,windows,doors,soap,perfume,robots,swimming pools,sandwiches,gold,wine"
).split(",")
SUBJECTS = (
    "quantum physics,history,volcanoes,philosophy,gravity,dinosaurs,politics,chess,yoga,taxes,bitcoin,football,Mars,planets,"
    "the ocean,evolution,algebra,trees,poetry,religion,medicine,computers,artificial intelligence,cooking,music,the law,"
    "elections,earthquakes,atoms,space travel,opera,vaccines,the stock market,grammar,machine learning,the universe"
).split(",")
CITIES = "Paris,London,Rome,Berlin,Oslo,Madrid,Tokyo,Vienna,Zurich,Lisbon,Prague,Cairo".split(",")
COUNTRIES = "France,Italy,Spain,Norway,Japan,Peru,Kenya,Canada,Egypt,India,Brazil,Greece".split(",")
