BEGIN TRANSACTION;
CREATE TABLE alembic_version (
	version_num VARCHAR(32) NOT NULL, 
	PRIMARY KEY (version_num)
);
INSERT INTO "alembic_version" VALUES('0001');
CREATE TABLE answers (
	id VARCHAR(64) NOT NULL, 
	seq BIGINT NOT NULL, 
	detail TEXT NOT NULL, 
	PRIMARY KEY (id)
);
INSERT INTO "answers" VALUES('3a6def5f5a0a7ee360dee37310fd6c2b00971e907de3f5e86e2c4446c314245e',35,'{"id":"3a6def5f5a0a7ee360dee37310fd6c2b00971e907de3f5e86e2c4446c314245e","parts":[{"name":"law","namespace":"shared","number":3,"weight":0.75},{"name":"medicine","namespace":"shared","number":1,"weight":0.25}],"provenance":{"answer":"dddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddd","base":"bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb","gate":"gate","nothing":0.0,"prompt":"cccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccc","selection":"{}","shares":[{"block":"law","version":"272ff428bd634b0a97514b941d0681f6880f74c87bc85095f1da13aee8c0c017","weight":0.75},{"block":"medicine","version":"9d63aceae69fa5808a49462ab1680e2ae40fa99e1b257887bb9e6c86e50fa187","weight":0.25}]}}');
CREATE TABLE bank (
	id VARCHAR(32) NOT NULL, 
	created BIGINT NOT NULL, 
	PRIMARY KEY (id)
);
INSERT INTO "bank" VALUES('36f39fdf1eca49a490cba29878475640',1767225600000000);
CREATE TABLE blocks (
	id INTEGER NOT NULL, 
	uid VARCHAR(32) NOT NULL, 
	namespace TEXT NOT NULL, 
	name TEXT NOT NULL, 
	PRIMARY KEY (id), 
	UNIQUE (uid)
);
INSERT INTO "blocks" VALUES(1,'860ff37a6b0a4378a0fd9315d97f009d','shared','law');
INSERT INTO "blocks" VALUES(2,'ef14d43407a24163bf865dcf8294f25d','shared','finance');
INSERT INTO "blocks" VALUES(3,'ec7b339ce73e47ee92042644751d46cf','shared','medicine');
INSERT INTO "blocks" VALUES(4,'262702dd5aea441bb281304dda7f2def','shared','old');
INSERT INTO "blocks" VALUES(5,'08e4fd972cdc4f6983cbb48ecc7ad000','shared','short');
INSERT INTO "blocks" VALUES(6,'e248e149556e42d79f9d256fa6081fa3','shared','frozen');
INSERT INTO "blocks" VALUES(7,'a0daac04b4e047f2b9501ad6393ba082','shared','gone');
INSERT INTO "blocks" VALUES(10,'362583a844584fdb83e03c7fa9da19cb','shared','both');
CREATE TABLE grants (
	principal TEXT NOT NULL, 
	role VARCHAR(16) NOT NULL, 
	scope TEXT NOT NULL, 
	since BIGINT NOT NULL, 
	until BIGINT NOT NULL, 
	PRIMARY KEY (principal, role, scope, since), 
	FOREIGN KEY(principal) REFERENCES principals (name)
);
INSERT INTO "grants" VALUES('root','owner','*',51,4611686018427387904);
INSERT INTO "grants" VALUES('ann','reader','shared',53,56);
INSERT INTO "grants" VALUES('bob','editor','team:legal',55,57);
CREATE TABLE journal (
	seq INTEGER NOT NULL, 
	at BIGINT NOT NULL, 
	principal TEXT NOT NULL, 
	action VARCHAR(16) NOT NULL, 
	namespace TEXT NOT NULL, 
	name TEXT NOT NULL, 
	detail TEXT NOT NULL, 
	previous VARCHAR(64) NOT NULL, 
	hash VARCHAR(64) NOT NULL, 
	PRIMARY KEY (seq)
);
INSERT INTO "journal" VALUES(1,1767225600000000,'root','commit','shared','law','{"card":{"base":"bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb","base_name":"","base_revision":"","created":"","domain":"domain of law","embedding":[],"half_life":null,"licence":"CC0-1.0","made_by":"","metrics":{},"name":"law","origin":"","parents":[],"peft_config":{},"priority":0,"recipe":{},"semantic_type":"","sensitivity":"internal","sources":[],"team":"t1","ttl":null},"digest":"272ff428bd634b0a97514b941d0681f6880f74c87bc85095f1da13aee8c0c017","message":"block 1","number":1,"rank":2,"restores":null,"sites":1,"size":296,"uid":"860ff37a6b0a4378a0fd9315d97f009d","weights":"e5a7ec83ee399a45c794be28219b4f682c84aaeb103f6f6bfe7ee2984c969c1a"}','0000000000000000000000000000000000000000000000000000000000000000','ecdb77c05e17469dec06b416e4d4d60ffc9a603c5bcdbf197aec8528f3e8f65f');
INSERT INTO "journal" VALUES(2,1767225601000000,'root','commit','shared','finance','{"card":{"base":"bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb","base_name":"","base_revision":"","created":"","domain":"domain of finance","embedding":[],"half_life":null,"licence":"CC0-1.0","made_by":"","metrics":{},"name":"finance","origin":"","parents":[],"peft_config":{},"priority":0,"recipe":{},"semantic_type":"","sensitivity":"internal","sources":[],"team":"t0","ttl":null},"digest":"f9ffa9ea79ba7fdf368e38a16c5df166235ae3d99d3fc7f80cb492969f3a8002","message":"block 2","number":1,"rank":2,"restores":null,"sites":1,"size":296,"uid":"ef14d43407a24163bf865dcf8294f25d","weights":"a56124c20372d6d2467714f9c8765b1b3e4d70b604ec0b70f70b4e4da2ddcaa5"}','ecdb77c05e17469dec06b416e4d4d60ffc9a603c5bcdbf197aec8528f3e8f65f','986eb1777ef52389b3d8717e60a34ec7e28480c3b59c532430c99b405443e933');
INSERT INTO "journal" VALUES(3,1767225602000000,'root','commit','shared','medicine','{"card":{"base":"bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb","base_name":"","base_revision":"","created":"","domain":"domain of medicine","embedding":[],"half_life":null,"licence":"CC0-1.0","made_by":"","metrics":{},"name":"medicine","origin":"","parents":[],"peft_config":{},"priority":0,"recipe":{},"semantic_type":"","sensitivity":"internal","sources":[],"team":"t1","ttl":null},"digest":"9d63aceae69fa5808a49462ab1680e2ae40fa99e1b257887bb9e6c86e50fa187","message":"block 3","number":1,"rank":2,"restores":null,"sites":1,"size":296,"uid":"ec7b339ce73e47ee92042644751d46cf","weights":"5ea9f7721a720e2b714c07a770ea4b1cee5157051617d35d835e122b422d4c65"}','986eb1777ef52389b3d8717e60a34ec7e28480c3b59c532430c99b405443e933','dad05c6155505b673bf6ab6684e8abff44f2af9374142c8c37ad1c44872f3dad');
INSERT INTO "journal" VALUES(4,1767225603000000,'root','commit','shared','old','{"card":{"base":"bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb","base_name":"","base_revision":"","created":"","domain":"domain of old","embedding":[],"half_life":null,"licence":"CC0-1.0","made_by":"","metrics":{},"name":"old","origin":"","parents":[],"peft_config":{},"priority":0,"recipe":{},"semantic_type":"","sensitivity":"internal","sources":[],"team":"t0","ttl":null},"digest":"ca3958792272db1db76dac599c79ef93fdc9a78a3bd37dc65c6f6cd8d33fe579","message":"block 4","number":1,"rank":2,"restores":null,"sites":1,"size":296,"uid":"262702dd5aea441bb281304dda7f2def","weights":"0226ea77d810966c38b42dcd78dc946912419a70e330986787138f0ff5c605e2"}','dad05c6155505b673bf6ab6684e8abff44f2af9374142c8c37ad1c44872f3dad','f00469fd7353712f6a6e18504c3a862d8aa79c37e139ae295a551140c741c5d2');
INSERT INTO "journal" VALUES(5,1767225604000000,'root','commit','shared','short','{"card":{"base":"bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb","base_name":"","base_revision":"","created":"","domain":"domain of short","embedding":[],"half_life":null,"licence":"","made_by":"","metrics":{},"name":"short","origin":"","parents":[],"peft_config":{},"priority":0,"recipe":{},"semantic_type":"","sensitivity":"internal","sources":[],"ttl":60.0},"digest":"e1fbb338b1dcd7dd4e4d386212489da45becd389c9b4109556d430af3078a83c","message":"block 5","number":1,"rank":2,"restores":null,"sites":1,"size":296,"uid":"08e4fd972cdc4f6983cbb48ecc7ad000","weights":"11a7e527a740aa998ad4aff6e5277b6fac0072cfbfb8df8cf4c9012b3190b7ab"}','f00469fd7353712f6a6e18504c3a862d8aa79c37e139ae295a551140c741c5d2','bc96741762be95c460fbfa049997c33b8e080830c4378f96d987321ed3b8d772');
INSERT INTO "journal" VALUES(6,1767225605000000,'root','commit','shared','frozen','{"card":{"base":"bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb","base_name":"","base_revision":"","created":"","domain":"domain of frozen","embedding":[],"half_life":null,"licence":"CC0-1.0","made_by":"","metrics":{},"name":"frozen","origin":"","parents":[],"peft_config":{},"priority":0,"recipe":{},"semantic_type":"","sensitivity":"internal","sources":[],"team":"t0","ttl":null},"digest":"56c30f1b10bbd9e9eb8b8c5075a06b630d79271e475033340480009c9e6d74db","message":"block 6","number":1,"rank":2,"restores":null,"sites":1,"size":296,"uid":"e248e149556e42d79f9d256fa6081fa3","weights":"4c93a97a1f97e72618bf9f1a7b1e5812a0a6af5092cd70a3809d8f564ad70282"}','bc96741762be95c460fbfa049997c33b8e080830c4378f96d987321ed3b8d772','15d1e165043564b886d7bad5c587884d31278a97accd2adb0be6cd8915ad2e66');
INSERT INTO "journal" VALUES(7,1767225606000000,'root','commit','shared','gone','{"card":{"base":"bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb","base_name":"","base_revision":"","created":"","domain":"domain of gone","embedding":[],"half_life":null,"licence":"CC0-1.0","made_by":"","metrics":{},"name":"gone","origin":"","parents":[],"peft_config":{},"priority":0,"recipe":{},"semantic_type":"","sensitivity":"internal","sources":[],"team":"t1","ttl":null},"digest":"7876717207e66f5dae0e81c1826e0057cba02009cc0a1b3f1c2fb0934c91e38d","message":"block 7","number":1,"rank":2,"restores":null,"sites":1,"size":296,"uid":"a0daac04b4e047f2b9501ad6393ba082","weights":"8d06a8aa9c7752ed6fd0c8c147553c2e8079202d25a21fe10706b785fa883d86"}','15d1e165043564b886d7bad5c587884d31278a97accd2adb0be6cd8915ad2e66','818303e3a2003d7e3562b6ef5ba7b774c3b57c6e9ff0d4ea0ff2093cfc6c2c4e');
INSERT INTO "journal" VALUES(8,1767225607000000,'root','commit','shared','law','{"card":{"base":"bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb","base_name":"","base_revision":"","created":"","domain":"domain of law","embedding":[],"half_life":100.0,"licence":"","made_by":"","metrics":{},"name":"law","origin":"","parents":[],"peft_config":{},"priority":2,"recipe":{},"semantic_type":"","sensitivity":"internal","sources":[],"ttl":null},"digest":"6c15ec1a881ca4812c8671045c171d6a1b932d662e5576ba98acf5ab152c4ca0","message":"","number":2,"rank":2,"restores":null,"sites":1,"size":296,"uid":"","weights":"c5bdf3d31b1a78fc583d5554ca7b61c0602e0a0daff8fcf317c2f605d5e1478d"}','818303e3a2003d7e3562b6ef5ba7b774c3b57c6e9ff0d4ea0ff2093cfc6c2c4e','5169b5306ab255227c07bc058660dd49b2862b0e74cd7fe4ad0ba1dbf153344b');
INSERT INTO "journal" VALUES(9,1767225607000000,'root','commit','shared','law','{"card":{"base":"bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb","base_name":"","base_revision":"","created":"","domain":"domain of law","embedding":[],"half_life":null,"licence":"CC0-1.0","made_by":"","metrics":{},"name":"law","origin":"","parents":[],"peft_config":{},"priority":0,"recipe":{},"semantic_type":"","sensitivity":"internal","sources":[],"team":"t1","ttl":null},"digest":"272ff428bd634b0a97514b941d0681f6880f74c87bc85095f1da13aee8c0c017","message":"back","number":3,"rank":2,"restores":1,"sites":1,"size":296,"uid":"","weights":"e5a7ec83ee399a45c794be28219b4f682c84aaeb103f6f6bfe7ee2984c969c1a"}','5169b5306ab255227c07bc058660dd49b2862b0e74cd7fe4ad0ba1dbf153344b','fca6258b652b22e25e9d2c1cc93b946fa6db7fdfc5ad3efb83f755285f6fbcf9');
INSERT INTO "journal" VALUES(10,1767225607000000,'root','commit','shared','both','{"card":{"base":"bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb","base_name":"","base_revision":"","created":"","domain":"domain of both","embedding":[],"half_life":null,"licence":"","made_by":"","metrics":{},"name":"both","origin":"","parents":["272ff428bd634b0a97514b941d0681f6880f74c87bc85095f1da13aee8c0c017","f9ffa9ea79ba7fdf368e38a16c5df166235ae3d99d3fc7f80cb492969f3a8002"],"peft_config":{},"priority":0,"recipe":{},"semantic_type":"","sensitivity":"internal","sources":[],"ttl":null},"digest":"937240bd5d46bcca9d555c5b54ae0eca6c0059a3f291b66eaa120a4495c996da","message":"","number":1,"rank":2,"restores":null,"sites":1,"size":296,"uid":"362583a844584fdb83e03c7fa9da19cb","weights":"737ad5c947f4273763d2ee003c52a4f66a9605d4cecabf12eecbfc4753ca7f21"}','fca6258b652b22e25e9d2c1cc93b946fa6db7fdfc5ad3efb83f755285f6fbcf9','23ff8bc7b57f1feabea927c71a80426f12df2280f9a23fa515d99db3355c0417');
INSERT INTO "journal" VALUES(11,1767225607000000,'root','tag','shared','law','{"number":2,"reason":"to see","tag":"trial"}','23ff8bc7b57f1feabea927c71a80426f12df2280f9a23fa515d99db3355c0417','3240fde3aa56da0c09ff95d187fce62642ccc9d1328b95dea920fcf144dd5258');
INSERT INTO "journal" VALUES(12,1767225607000000,'root','tag','shared','law','{"number":2,"reason":"","tag":"stable"}','3240fde3aa56da0c09ff95d187fce62642ccc9d1328b95dea920fcf144dd5258','1fcb259599cbe4c77b6e22f5ad54808f5bf403d60334aeb7a1228fb685c71673');
INSERT INTO "journal" VALUES(13,1767225607000000,'root','untag','shared','law','{"reason":"seen","tag":"trial"}','1fcb259599cbe4c77b6e22f5ad54808f5bf403d60334aeb7a1228fb685c71673','e21522022a52abe596a39d08ab9f715505061bf9555fcedbfd7013ae37940777');
INSERT INTO "journal" VALUES(14,1767225607000000,'root','move','shared','gone','{"from":"generated","reason":"","to":"archived","trigger":"archive"}','e21522022a52abe596a39d08ab9f715505061bf9555fcedbfd7013ae37940777','9d92069663deb66b5932b9147a1890a378fe3e849573e220173768caac659395');
INSERT INTO "journal" VALUES(15,1767225607000000,'root','move','shared','gone','{"from":"archived","reason":"","to":"expired","trigger":"expire"}','9d92069663deb66b5932b9147a1890a378fe3e849573e220173768caac659395','a907f7f4c8509c049fc3a9864c2eea2c0c715185c143c50434abc1e2c5163620');
INSERT INTO "journal" VALUES(16,1767225607000000,'root','collect','','','{"objects":[["8d06a8aa9c7752ed6fd0c8c147553c2e8079202d25a21fe10706b785fa883d86",296,"its block is expired"],["7876717207e66f5dae0e81c1826e0057cba02009cc0a1b3f1c2fb0934c91e38d",604,"its block is expired"]]}','a907f7f4c8509c049fc3a9864c2eea2c0c715185c143c50434abc1e2c5163620','fed9abede1199424890ac36b7354dcb26dafc2ef00b06630d4ebf7caa8749b5d');
INSERT INTO "journal" VALUES(17,1767225607000000,'root','snapshot','','','{"moment":16,"snapshot":"before"}','fed9abede1199424890ac36b7354dcb26dafc2ef00b06630d4ebf7caa8749b5d','7aeb11364545dff67d6653235ecc753d17993e28574b72521ce0da5e36c7519c');
INSERT INTO "journal" VALUES(18,1767225607000000,'root','snapshot','','','{"moment":17,"snapshot":"to drop"}','7aeb11364545dff67d6653235ecc753d17993e28574b72521ce0da5e36c7519c','b49fbdda3067d9eacd0c6463c6300b3f7b040d84d88741788599cebb99516851');
INSERT INTO "journal" VALUES(19,1767225607000000,'root','drop','','','{"snapshot":"to drop"}','b49fbdda3067d9eacd0c6463c6300b3f7b040d84d88741788599cebb99516851','abdb887c8af4b9498c4c39db825acc3636ca64422a63fe585a8ef73b02579134');
INSERT INTO "journal" VALUES(20,1767225607000000,'root','use','shared','law','{"count":3,"number":3,"relevance":1.5}','abdb887c8af4b9498c4c39db825acc3636ca64422a63fe585a8ef73b02579134','442cd8b64d867270d610eaaab8de8b1668b7450efae567ecaac0cd207f04b112');
INSERT INTO "journal" VALUES(21,1767225607000000,'root','move','shared','law','{"from":"generated","to":"activated","trigger":"use"}','442cd8b64d867270d610eaaab8de8b1668b7450efae567ecaac0cd207f04b112','68b6bdf515ff9d6852483a9e54172b312b9e63b6727795279182b6af514f824d');
INSERT INTO "journal" VALUES(22,1767225607000000,'root','use','shared','law','{"count":1,"number":2,"relevance":1.0}','68b6bdf515ff9d6852483a9e54172b312b9e63b6727795279182b6af514f824d','d386f76af5f78265c9a2ba4dc61171afa5fd892aa4e75087cba7a3132abb9e10');
INSERT INTO "journal" VALUES(23,1767225607000000,'root','move','shared','finance','{"from":"generated","into":"937240bd5d46bcca9d555c5b54ae0eca6c0059a3f291b66eaa120a4495c996da","reason":"","to":"merged","trigger":"merge"}','d386f76af5f78265c9a2ba4dc61171afa5fd892aa4e75087cba7a3132abb9e10','db40d5e1b70f504649483e5fc611e3b128c99823adc3563b643889ed76c37352');
INSERT INTO "journal" VALUES(24,1767225607000000,'root','move','shared','old','{"from":"generated","reason":"unused","to":"archived","trigger":"archive"}','db40d5e1b70f504649483e5fc611e3b128c99823adc3563b643889ed76c37352','3009ccb9970915419bd4eab906f97f7f6f3029fe1dd95d4ae7a060793689aca1');
INSERT INTO "journal" VALUES(25,1767225607000000,'root','move','shared','old','{"from":"archived","reason":"","to":"generated","trigger":"restore"}','3009ccb9970915419bd4eab906f97f7f6f3029fe1dd95d4ae7a060793689aca1','412af38d30e03600d4e11cfa7972fd0ad51b15bc7b9b92f0097b3a1989a8b35d');
INSERT INTO "journal" VALUES(26,1767225607000000,'root','move','shared','frozen','{"from":"generated","reason":"","to":"frozen","trigger":"freeze"}','412af38d30e03600d4e11cfa7972fd0ad51b15bc7b9b92f0097b3a1989a8b35d','e05fef6bc2f857759033cfd307fcb643f0f3739aa9e196ccf5d97d859297c58a');
INSERT INTO "journal" VALUES(27,1769817607000000,'root','move','shared','short','{"from":"generated","to":"archived","trigger":"ttl"}','e05fef6bc2f857759033cfd307fcb643f0f3739aa9e196ccf5d97d859297c58a','2b32fe75f83c41800af8e5be303d3bf7454c8986aaf1895292a2a0726e857184');
INSERT INTO "journal" VALUES(28,1769817607000000,'root','move','shared','short','{"from":"archived","to":"expired","trigger":"expire"}','2b32fe75f83c41800af8e5be303d3bf7454c8986aaf1895292a2a0726e857184','4d6af6435eb9d4f9ea1da5ded178bc106aa94a990242a95d868766e12f560ef7');
INSERT INTO "journal" VALUES(29,1769817607000000,'root','evaluate','shared','medicine','{"by":"","number":1,"scores":{"exact":{"ceiling":null,"clusters":4,"floor":null,"high":0.6,"low":0.4,"n":20,"value":0.5},"lost":{"ceiling":null,"clusters":4,"floor":null,"high":0.02,"low":0.0,"n":20,"value":0.01}}}','4d6af6435eb9d4f9ea1da5ded178bc106aa94a990242a95d868766e12f560ef7','5f0eacc5447e22413bc9018d70593f89ca26ad39b8599d12a14f22e32d71d1c8');
INSERT INTO "journal" VALUES(30,1769817607000000,'root','protect','','','{"policy":{"bounds":[{"at_least":0.3,"at_most":null,"judged":"interval","metric":"exact","relative":false}]},"tag":"prod"}','5f0eacc5447e22413bc9018d70593f89ca26ad39b8599d12a14f22e32d71d1c8','20f12caf298c199cb19cb839f09b8e0fd20a5e1c9daf493c42746185c75bdc25');
INSERT INTO "journal" VALUES(31,1769817607000000,'root','tag','shared','medicine','{"number":1,"reason":"","tag":"prod"}','20f12caf298c199cb19cb839f09b8e0fd20a5e1c9daf493c42746185c75bdc25','7fa90c7dd2c697190a4777b0c47f1b2ff17fda154d7b76317276c3f43c725a4f');
INSERT INTO "journal" VALUES(32,1769817607000000,'root','refused','','','{"reason":"version 3 of shared/law may not take the protected tag ''prod'': exact, at least 0.3: not measured; record it; tag a version that fits, or scale this one down"}','7fa90c7dd2c697190a4777b0c47f1b2ff17fda154d7b76317276c3f43c725a4f','f2b713f371a04fae9b853efafb4b495285a3dd3db87f9ed26c71d4bc7070c9e0');
INSERT INTO "journal" VALUES(33,1769817607000000,'root','protect','','','{"policy":{"bounds":[]},"tag":"trial"}','f2b713f371a04fae9b853efafb4b495285a3dd3db87f9ed26c71d4bc7070c9e0','28fa21d762f6cad6831d94694154eea9d6dd828beb7dc6bc4fbe010bc148abd5');
INSERT INTO "journal" VALUES(34,1769817607000000,'root','unprotect','','','{"tag":"trial"}','28fa21d762f6cad6831d94694154eea9d6dd828beb7dc6bc4fbe010bc148abd5','766b008df2617b0cf80da952d7b70117df8eab6b7ffe486903667900aca78f2a');
INSERT INTO "journal" VALUES(35,1769817607000000,'root','answer','','','{"id":"3a6def5f5a0a7ee360dee37310fd6c2b00971e907de3f5e86e2c4446c314245e","parts":[{"name":"law","namespace":"shared","number":3,"weight":0.75},{"name":"medicine","namespace":"shared","number":1,"weight":0.25}],"provenance":{"answer":"dddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddd","base":"bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb","gate":"gate","nothing":0.0,"prompt":"cccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccc","selection":"{}","shares":[{"block":"law","version":"272ff428bd634b0a97514b941d0681f6880f74c87bc85095f1da13aee8c0c017","weight":0.75},{"block":"medicine","version":"9d63aceae69fa5808a49462ab1680e2ae40fa99e1b257887bb9e6c86e50fa187","weight":0.25}]}}','766b008df2617b0cf80da952d7b70117df8eab6b7ffe486903667900aca78f2a','c033bb350872ca57396c1a60e2c7384062f8b8e3b12f28048ae448766c8e0cc6');
INSERT INTO "journal" VALUES(36,1769817607000000,'root','use','shared','law','{"count":1,"number":3,"relevance":0.75}','c033bb350872ca57396c1a60e2c7384062f8b8e3b12f28048ae448766c8e0cc6','49c993e37929fbfe9cf22729d9c8a3027ae17a6f17d394f710261eb391bc4ab0');
INSERT INTO "journal" VALUES(37,1769817607000000,'root','use','shared','medicine','{"count":1,"number":1,"relevance":0.25}','49c993e37929fbfe9cf22729d9c8a3027ae17a6f17d394f710261eb391bc4ab0','dd60e3067985e692e6e025845f342c2c1731a6f500e557ac2fb6a473fa22d7f3');
INSERT INTO "journal" VALUES(38,1769817607000000,'root','move','shared','medicine','{"from":"generated","to":"activated","trigger":"use"}','dd60e3067985e692e6e025845f342c2c1731a6f500e557ac2fb6a473fa22d7f3','ddf748eba0b7bde3fe49f709ddab34353c75d44d32ce18a3b5fc6777c9c2ba75');
INSERT INTO "journal" VALUES(39,1769817607000000,'root','move','shared','finance','{"from":"merged","reason":"restore of the bank","to":"generated","trigger":"restore"}','ddf748eba0b7bde3fe49f709ddab34353c75d44d32ce18a3b5fc6777c9c2ba75','abdcf544fbae39ce375b5066ec8aa681ee2b932431c67fa71e031550ef2d8b83');
INSERT INTO "journal" VALUES(40,1769817607000000,'root','untag','shared','medicine','{"reason":"","tag":"prod"}','abdcf544fbae39ce375b5066ec8aa681ee2b932431c67fa71e031550ef2d8b83','79fdd0aa83139b5f9edf98efe88727d94489edc6401bdbf620d1dfbe8de535f1');
INSERT INTO "journal" VALUES(41,1769817607000000,'root','commit','shared','short','{"card":{"base":"bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb","base_name":"","base_revision":"","created":"","domain":"domain of short","embedding":[],"half_life":null,"licence":"","made_by":"","metrics":{},"name":"short","origin":"","parents":[],"peft_config":{},"priority":0,"recipe":{},"semantic_type":"","sensitivity":"internal","sources":[],"ttl":60.0},"digest":"e1fbb338b1dcd7dd4e4d386212489da45becd389c9b4109556d430af3078a83c","message":"restore of the bank","number":2,"rank":2,"restores":1,"sites":1,"size":296,"uid":"","weights":"11a7e527a740aa998ad4aff6e5277b6fac0072cfbfb8df8cf4c9012b3190b7ab"}','79fdd0aa83139b5f9edf98efe88727d94489edc6401bdbf620d1dfbe8de535f1','8a44a1675e5bf3178597c3890033e66a55260e2ceb7fea2c11b4018ae297c69f');
INSERT INTO "journal" VALUES(42,1769817607000000,'root','move','shared','short','{"from":"expired","to":"generated","trigger":"commit"}','8a44a1675e5bf3178597c3890033e66a55260e2ceb7fea2c11b4018ae297c69f','07cabd23e37e3f15e78e2686cfcfd10b9bfaa9299b92eba43b5a41e2cd049786');
INSERT INTO "journal" VALUES(43,1769817607000000,'root','restore','','','{"archived":0,"changed":3,"message":"","moment":16}','07cabd23e37e3f15e78e2686cfcfd10b9bfaa9299b92eba43b5a41e2cd049786','c51dc108b6e80fee209c167962cc53c4d42da7e2cf474770054aeda418fdc7d3');
INSERT INTO "journal" VALUES(44,1769817607000000,'root','sign','shared','law','{"bundle":"a signature","digest":"272ff428bd634b0a97514b941d0681f6880f74c87bc85095f1da13aee8c0c017","key":"eeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeee","number":3}','c51dc108b6e80fee209c167962cc53c4d42da7e2cf474770054aeda418fdc7d3','7d1c94e1a631e0bd6b9a4cfa4d94b68fc4e77d3b42818671db793fa1e6c2ed9a');
INSERT INTO "journal" VALUES(45,1769817607000000,'root','subscribe','shared','law','{"reference":"law","source":"/another/bank"}','7d1c94e1a631e0bd6b9a4cfa4d94b68fc4e77d3b42818671db793fa1e6c2ed9a','4fa9b51ed684794733e6162c3ceb2c12fafebce186598e65aafcdb7a990d242c');
INSERT INTO "journal" VALUES(46,1769817607000000,'root','subscribe','shared','both','{"reference":"both","source":"/another/bank"}','4fa9b51ed684794733e6162c3ceb2c12fafebce186598e65aafcdb7a990d242c','517382d8f454ebc250aab7ec34edf1f58fbd974e0d662f8cc62c155d427e723a');
INSERT INTO "journal" VALUES(47,1769817607000000,'root','unsubscribe','shared','law','{}','517382d8f454ebc250aab7ec34edf1f58fbd974e0d662f8cc62c155d427e723a','117af37c78c199a106fbfd7339c0ec0326e114f0388a6cd7a9dec209d92c1afc');
INSERT INTO "journal" VALUES(48,1769817607000000,'root','pull','shared','law','{"digest":"272ff428bd634b0a97514b941d0681f6880f74c87bc85095f1da13aee8c0c017","source":"/another/bank"}','117af37c78c199a106fbfd7339c0ec0326e114f0388a6cd7a9dec209d92c1afc','d27c4a41cec664d364672094a5dc60b875d8af4bc08bebed2ba9d417cf0b46b9');
INSERT INTO "journal" VALUES(49,1769817607000000,'root','export','shared','law','{"format":"peft","number":3}','d27c4a41cec664d364672094a5dc60b875d8af4bc08bebed2ba9d417cf0b46b9','f1999601c10a3fb60f5faead2c7d1a812dd70430b61e3401336df269e7f14b91');
INSERT INTO "journal" VALUES(50,1769817607000000,'root','enrol','','','{"principal":"root","token":""}','f1999601c10a3fb60f5faead2c7d1a812dd70430b61e3401336df269e7f14b91','705c910b3a3704338e2d9da46213b9ba474f97db25ea2964c8d3c1f9d666642a');
INSERT INTO "journal" VALUES(51,1769817607000000,'root','grant','','','{"principal":"root","role":"owner","scope":"*"}','705c910b3a3704338e2d9da46213b9ba474f97db25ea2964c8d3c1f9d666642a','a030b4182b157d56c1ba13d8694269765d6a36a858d25ee3027625bc2c7a4226');
INSERT INTO "journal" VALUES(52,1769817607000000,'root','enrol','','','{"principal":"ann","token":""}','a030b4182b157d56c1ba13d8694269765d6a36a858d25ee3027625bc2c7a4226','049578c99fceb35eceeda9d5de2ab4905e26c887605ef0eb98061c8e95fd1cfd');
INSERT INTO "journal" VALUES(53,1769817607000000,'root','grant','','','{"principal":"ann","role":"reader","scope":"shared"}','049578c99fceb35eceeda9d5de2ab4905e26c887605ef0eb98061c8e95fd1cfd','80862c218bb47647e63cad081a67d4165f8c426298b35169bb217ef0139a654d');
INSERT INTO "journal" VALUES(54,1769817607000000,'root','enrol','','','{"principal":"bob","token":"984ca5162200734c592148f1820b71057f098573d138666b48663e4e30cd8d3a"}','80862c218bb47647e63cad081a67d4165f8c426298b35169bb217ef0139a654d','ee9fe780a2b5bc1487209701e0075e94966bef0545c08a7042c8a6560f38782d');
INSERT INTO "journal" VALUES(55,1769817607000000,'root','grant','','','{"principal":"bob","role":"editor","scope":"team:legal"}','ee9fe780a2b5bc1487209701e0075e94966bef0545c08a7042c8a6560f38782d','90379c1e3b892a2000f48d2b677846b564b74ddc91c7759fc68220573c90f4db');
INSERT INTO "journal" VALUES(56,1769817607000000,'root','withdraw','','','{"principal":"ann","role":"reader","scope":"shared"}','90379c1e3b892a2000f48d2b677846b564b74ddc91c7759fc68220573c90f4db','db0baeed2ca283576faa317aa9fa09353af5ba6812a576a8025025a1e6211e1c');
INSERT INTO "journal" VALUES(57,1769817607000000,'root','revoke','','','{"principal":"bob","reason":""}','db0baeed2ca283576faa317aa9fa09353af5ba6812a576a8025025a1e6211e1c','755bb2e23e0e57e37c36c9320d8321992b4a7ff2e44ebb40b816a82f8786a25f');
INSERT INTO "journal" VALUES(58,1769817607000000,'root','read','shared','law','{"digest":"272ff428bd634b0a97514b941d0681f6880f74c87bc85095f1da13aee8c0c017","number":3}','755bb2e23e0e57e37c36c9320d8321992b4a7ff2e44ebb40b816a82f8786a25f','0b5ef4a7c0f9d35370e1eb18c2f0f816a64ea100d3f738d0c44a397e61e97880');
INSERT INTO "journal" VALUES(59,1769817607000000,'eve','denied','','','{"reason":"''eve'' may not read the bank: the bank does not know this principal; an owner may enrol them"}','0b5ef4a7c0f9d35370e1eb18c2f0f816a64ea100d3f738d0c44a397e61e97880','44a2ea362a700b2a3bb2b168857b4d6f9fbfb0081260c486ef8bda76636aa938');
CREATE TABLE parents (
	block INTEGER NOT NULL, 
	number INTEGER NOT NULL, 
	parent VARCHAR(64) NOT NULL, 
	PRIMARY KEY (block, number, parent), 
	FOREIGN KEY(block) REFERENCES blocks (id)
)
 WITHOUT ROWID

;
INSERT INTO "parents" VALUES(10,1,'272ff428bd634b0a97514b941d0681f6880f74c87bc85095f1da13aee8c0c017');
INSERT INTO "parents" VALUES(10,1,'f9ffa9ea79ba7fdf368e38a16c5df166235ae3d99d3fc7f80cb492969f3a8002');
CREATE TABLE policies (
	tag TEXT NOT NULL, 
	since BIGINT NOT NULL, 
	until BIGINT NOT NULL, 
	policy TEXT NOT NULL, 
	PRIMARY KEY (tag, since)
);
INSERT INTO "policies" VALUES('prod',30,4611686018427387904,'{"bounds":[{"at_least":0.3,"at_most":null,"judged":"interval","metric":"exact","relative":false}]}');
INSERT INTO "policies" VALUES('trial',33,34,'{"bounds":[]}');
CREATE TABLE principals (
	name TEXT NOT NULL, 
	token VARCHAR(64) NOT NULL, 
	since BIGINT NOT NULL, 
	revoked BIGINT NOT NULL, 
	PRIMARY KEY (name)
);
INSERT INTO "principals" VALUES('root','',50,4611686018427387904);
INSERT INTO "principals" VALUES('ann','',52,4611686018427387904);
INSERT INTO "principals" VALUES('bob','984ca5162200734c592148f1820b71057f098573d138666b48663e4e30cd8d3a',54,57);
CREATE TABLE scores (
	block INTEGER NOT NULL, 
	number INTEGER NOT NULL, 
	seq BIGINT NOT NULL, 
	metric TEXT NOT NULL, 
	value FLOAT NOT NULL, 
	low FLOAT, 
	high FLOAT, 
	n INTEGER NOT NULL, 
	clusters INTEGER NOT NULL, 
	floor FLOAT, 
	ceiling FLOAT, 
	PRIMARY KEY (block, number, seq, metric), 
	FOREIGN KEY(block) REFERENCES blocks (id)
);
INSERT INTO "scores" VALUES(3,1,29,'exact',0.5,0.4,0.6,20,4,NULL,NULL);
INSERT INTO "scores" VALUES(3,1,29,'lost',0.01,0.0,0.02,20,4,NULL,NULL);
CREATE TABLE shares (
	answer VARCHAR(64) NOT NULL, 
	block INTEGER NOT NULL, 
	number INTEGER NOT NULL, 
	seq BIGINT NOT NULL, 
	weight FLOAT NOT NULL, 
	PRIMARY KEY (answer, block, number), 
	FOREIGN KEY(answer) REFERENCES answers (id), 
	FOREIGN KEY(block) REFERENCES blocks (id)
);
INSERT INTO "shares" VALUES('3a6def5f5a0a7ee360dee37310fd6c2b00971e907de3f5e86e2c4446c314245e',1,3,35,0.75);
INSERT INTO "shares" VALUES('3a6def5f5a0a7ee360dee37310fd6c2b00971e907de3f5e86e2c4446c314245e',3,1,35,0.25);
CREATE TABLE signatures (
	digest VARCHAR(64) NOT NULL, 
	"key" VARCHAR(64) NOT NULL, 
	seq BIGINT NOT NULL, 
	bundle TEXT NOT NULL, 
	PRIMARY KEY (digest, "key")
);
INSERT INTO "signatures" VALUES('272ff428bd634b0a97514b941d0681f6880f74c87bc85095f1da13aee8c0c017','eeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeee',44,'a signature');
CREATE TABLE snapshots (
	name TEXT NOT NULL, 
	since BIGINT NOT NULL, 
	until BIGINT NOT NULL, 
	moment BIGINT NOT NULL, 
	PRIMARY KEY (name, since)
);
INSERT INTO "snapshots" VALUES('before',17,4611686018427387904,16);
INSERT INTO "snapshots" VALUES('to drop',18,19,17);
CREATE TABLE states (
	block INTEGER NOT NULL, 
	since BIGINT NOT NULL, 
	until BIGINT NOT NULL, 
	state VARCHAR(16) NOT NULL, 
	"trigger" VARCHAR(16) NOT NULL, 
	PRIMARY KEY (block, since), 
	FOREIGN KEY(block) REFERENCES blocks (id)
)
 WITHOUT ROWID

;
INSERT INTO "states" VALUES(1,1,21,'generated','commit');
INSERT INTO "states" VALUES(1,21,4611686018427387904,'activated','use');
INSERT INTO "states" VALUES(2,2,23,'generated','commit');
INSERT INTO "states" VALUES(2,23,39,'merged','merge');
INSERT INTO "states" VALUES(2,39,4611686018427387904,'generated','restore');
INSERT INTO "states" VALUES(3,3,38,'generated','commit');
INSERT INTO "states" VALUES(3,38,4611686018427387904,'activated','use');
INSERT INTO "states" VALUES(4,4,24,'generated','commit');
INSERT INTO "states" VALUES(4,24,25,'archived','archive');
INSERT INTO "states" VALUES(4,25,4611686018427387904,'generated','restore');
INSERT INTO "states" VALUES(5,5,27,'generated','commit');
INSERT INTO "states" VALUES(5,27,28,'archived','ttl');
INSERT INTO "states" VALUES(5,28,42,'expired','expire');
INSERT INTO "states" VALUES(5,42,4611686018427387904,'generated','commit');
INSERT INTO "states" VALUES(6,6,26,'generated','commit');
INSERT INTO "states" VALUES(6,26,4611686018427387904,'frozen','freeze');
INSERT INTO "states" VALUES(7,7,14,'generated','commit');
INSERT INTO "states" VALUES(7,14,15,'archived','archive');
INSERT INTO "states" VALUES(7,15,4611686018427387904,'expired','expire');
INSERT INTO "states" VALUES(10,10,4611686018427387904,'generated','commit');
CREATE TABLE subscriptions (
	namespace TEXT NOT NULL, 
	name TEXT NOT NULL, 
	since BIGINT NOT NULL, 
	until BIGINT NOT NULL, 
	source TEXT NOT NULL, 
	reference TEXT NOT NULL, 
	PRIMARY KEY (namespace, name, since)
);
INSERT INTO "subscriptions" VALUES('shared','law',45,47,'/another/bank','law');
INSERT INTO "subscriptions" VALUES('shared','both',46,4611686018427387904,'/another/bank','both');
CREATE TABLE tags (
	block INTEGER NOT NULL, 
	tag TEXT NOT NULL, 
	since BIGINT NOT NULL, 
	until BIGINT NOT NULL, 
	number INTEGER NOT NULL, 
	PRIMARY KEY (block, tag, since), 
	FOREIGN KEY(block) REFERENCES blocks (id)
)
 WITHOUT ROWID

;
INSERT INTO "tags" VALUES(1,'latest',1,8,1);
INSERT INTO "tags" VALUES(1,'latest',8,9,2);
INSERT INTO "tags" VALUES(5,'latest',5,41,1);
INSERT INTO "tags" VALUES(2,'latest',2,4611686018427387904,1);
INSERT INTO "tags" VALUES(3,'latest',3,4611686018427387904,1);
INSERT INTO "tags" VALUES(4,'latest',4,4611686018427387904,1);
INSERT INTO "tags" VALUES(6,'latest',6,4611686018427387904,1);
INSERT INTO "tags" VALUES(7,'latest',7,4611686018427387904,1);
INSERT INTO "tags" VALUES(10,'latest',10,4611686018427387904,1);
INSERT INTO "tags" VALUES(5,'latest',41,4611686018427387904,2);
INSERT INTO "tags" VALUES(1,'latest',9,4611686018427387904,3);
INSERT INTO "tags" VALUES(3,'prod',31,40,1);
INSERT INTO "tags" VALUES(1,'stable',12,4611686018427387904,2);
INSERT INTO "tags" VALUES(1,'trial',11,13,2);
CREATE TABLE uses (
	block INTEGER NOT NULL, 
	number INTEGER NOT NULL, 
	count BIGINT NOT NULL, 
	last BIGINT NOT NULL, 
	relevance FLOAT NOT NULL, 
	PRIMARY KEY (block, number), 
	FOREIGN KEY(block) REFERENCES blocks (id)
)
 WITHOUT ROWID

;
INSERT INTO "uses" VALUES(1,2,1,1767225607000000,1.0);
INSERT INTO "uses" VALUES(1,3,4,1769817607000000,2.25);
INSERT INTO "uses" VALUES(3,1,1,1769817607000000,0.25);
CREATE TABLE versions (
	block INTEGER NOT NULL, 
	number INTEGER NOT NULL, 
	seq BIGINT NOT NULL, 
	digest VARCHAR(64) NOT NULL, 
	weights VARCHAR(64) NOT NULL, 
	size BIGINT NOT NULL, 
	rank INTEGER NOT NULL, 
	sites INTEGER NOT NULL, 
	restores INTEGER, 
	expires BIGINT NOT NULL, 
	domain TEXT NOT NULL, 
	base TEXT NOT NULL, 
	base_name TEXT NOT NULL, 
	semantic_type TEXT NOT NULL, 
	origin TEXT NOT NULL, 
	licence TEXT NOT NULL, 
	sensitivity TEXT NOT NULL, 
	made_by TEXT NOT NULL, 
	created TEXT NOT NULL, 
	message TEXT NOT NULL, 
	card TEXT NOT NULL, 
	PRIMARY KEY (block, number), 
	FOREIGN KEY(block) REFERENCES blocks (id), 
	UNIQUE (seq)
);
INSERT INTO "versions" VALUES(1,1,1,'272ff428bd634b0a97514b941d0681f6880f74c87bc85095f1da13aee8c0c017','e5a7ec83ee399a45c794be28219b4f682c84aaeb103f6f6bfe7ee2984c969c1a',296,2,1,NULL,4611686018427387904,'domain of law','bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb','','','','CC0-1.0','internal','','','block 1','{"base":"bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb","base_name":"","base_revision":"","created":"","domain":"domain of law","embedding":[],"half_life":null,"licence":"CC0-1.0","made_by":"","metrics":{},"name":"law","origin":"","parents":[],"peft_config":{},"priority":0,"recipe":{},"semantic_type":"","sensitivity":"internal","sources":[],"team":"t1","ttl":null}');
INSERT INTO "versions" VALUES(2,1,2,'f9ffa9ea79ba7fdf368e38a16c5df166235ae3d99d3fc7f80cb492969f3a8002','a56124c20372d6d2467714f9c8765b1b3e4d70b604ec0b70f70b4e4da2ddcaa5',296,2,1,NULL,4611686018427387904,'domain of finance','bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb','','','','CC0-1.0','internal','','','block 2','{"base":"bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb","base_name":"","base_revision":"","created":"","domain":"domain of finance","embedding":[],"half_life":null,"licence":"CC0-1.0","made_by":"","metrics":{},"name":"finance","origin":"","parents":[],"peft_config":{},"priority":0,"recipe":{},"semantic_type":"","sensitivity":"internal","sources":[],"team":"t0","ttl":null}');
INSERT INTO "versions" VALUES(3,1,3,'9d63aceae69fa5808a49462ab1680e2ae40fa99e1b257887bb9e6c86e50fa187','5ea9f7721a720e2b714c07a770ea4b1cee5157051617d35d835e122b422d4c65',296,2,1,NULL,4611686018427387904,'domain of medicine','bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb','','','','CC0-1.0','internal','','','block 3','{"base":"bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb","base_name":"","base_revision":"","created":"","domain":"domain of medicine","embedding":[],"half_life":null,"licence":"CC0-1.0","made_by":"","metrics":{},"name":"medicine","origin":"","parents":[],"peft_config":{},"priority":0,"recipe":{},"semantic_type":"","sensitivity":"internal","sources":[],"team":"t1","ttl":null}');
INSERT INTO "versions" VALUES(4,1,4,'ca3958792272db1db76dac599c79ef93fdc9a78a3bd37dc65c6f6cd8d33fe579','0226ea77d810966c38b42dcd78dc946912419a70e330986787138f0ff5c605e2',296,2,1,NULL,4611686018427387904,'domain of old','bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb','','','','CC0-1.0','internal','','','block 4','{"base":"bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb","base_name":"","base_revision":"","created":"","domain":"domain of old","embedding":[],"half_life":null,"licence":"CC0-1.0","made_by":"","metrics":{},"name":"old","origin":"","parents":[],"peft_config":{},"priority":0,"recipe":{},"semantic_type":"","sensitivity":"internal","sources":[],"team":"t0","ttl":null}');
INSERT INTO "versions" VALUES(5,1,5,'e1fbb338b1dcd7dd4e4d386212489da45becd389c9b4109556d430af3078a83c','11a7e527a740aa998ad4aff6e5277b6fac0072cfbfb8df8cf4c9012b3190b7ab',296,2,1,NULL,1767225664000000,'domain of short','bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb','','','','','internal','','','block 5','{"base":"bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb","base_name":"","base_revision":"","created":"","domain":"domain of short","embedding":[],"half_life":null,"licence":"","made_by":"","metrics":{},"name":"short","origin":"","parents":[],"peft_config":{},"priority":0,"recipe":{},"semantic_type":"","sensitivity":"internal","sources":[],"ttl":60.0}');
INSERT INTO "versions" VALUES(6,1,6,'56c30f1b10bbd9e9eb8b8c5075a06b630d79271e475033340480009c9e6d74db','4c93a97a1f97e72618bf9f1a7b1e5812a0a6af5092cd70a3809d8f564ad70282',296,2,1,NULL,4611686018427387904,'domain of frozen','bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb','','','','CC0-1.0','internal','','','block 6','{"base":"bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb","base_name":"","base_revision":"","created":"","domain":"domain of frozen","embedding":[],"half_life":null,"licence":"CC0-1.0","made_by":"","metrics":{},"name":"frozen","origin":"","parents":[],"peft_config":{},"priority":0,"recipe":{},"semantic_type":"","sensitivity":"internal","sources":[],"team":"t0","ttl":null}');
INSERT INTO "versions" VALUES(7,1,7,'7876717207e66f5dae0e81c1826e0057cba02009cc0a1b3f1c2fb0934c91e38d','8d06a8aa9c7752ed6fd0c8c147553c2e8079202d25a21fe10706b785fa883d86',296,2,1,NULL,4611686018427387904,'domain of gone','bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb','','','','CC0-1.0','internal','','','block 7','{"base":"bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb","base_name":"","base_revision":"","created":"","domain":"domain of gone","embedding":[],"half_life":null,"licence":"CC0-1.0","made_by":"","metrics":{},"name":"gone","origin":"","parents":[],"peft_config":{},"priority":0,"recipe":{},"semantic_type":"","sensitivity":"internal","sources":[],"team":"t1","ttl":null}');
INSERT INTO "versions" VALUES(1,2,8,'6c15ec1a881ca4812c8671045c171d6a1b932d662e5576ba98acf5ab152c4ca0','c5bdf3d31b1a78fc583d5554ca7b61c0602e0a0daff8fcf317c2f605d5e1478d',296,2,1,NULL,4611686018427387904,'domain of law','bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb','','','','','internal','','','','{"base":"bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb","base_name":"","base_revision":"","created":"","domain":"domain of law","embedding":[],"half_life":100.0,"licence":"","made_by":"","metrics":{},"name":"law","origin":"","parents":[],"peft_config":{},"priority":2,"recipe":{},"semantic_type":"","sensitivity":"internal","sources":[],"ttl":null}');
INSERT INTO "versions" VALUES(1,3,9,'272ff428bd634b0a97514b941d0681f6880f74c87bc85095f1da13aee8c0c017','e5a7ec83ee399a45c794be28219b4f682c84aaeb103f6f6bfe7ee2984c969c1a',296,2,1,1,4611686018427387904,'domain of law','bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb','','','','CC0-1.0','internal','','','back','{"base":"bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb","base_name":"","base_revision":"","created":"","domain":"domain of law","embedding":[],"half_life":null,"licence":"CC0-1.0","made_by":"","metrics":{},"name":"law","origin":"","parents":[],"peft_config":{},"priority":0,"recipe":{},"semantic_type":"","sensitivity":"internal","sources":[],"team":"t1","ttl":null}');
INSERT INTO "versions" VALUES(10,1,10,'937240bd5d46bcca9d555c5b54ae0eca6c0059a3f291b66eaa120a4495c996da','737ad5c947f4273763d2ee003c52a4f66a9605d4cecabf12eecbfc4753ca7f21',296,2,1,NULL,4611686018427387904,'domain of both','bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb','','','','','internal','','','','{"base":"bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb","base_name":"","base_revision":"","created":"","domain":"domain of both","embedding":[],"half_life":null,"licence":"","made_by":"","metrics":{},"name":"both","origin":"","parents":["272ff428bd634b0a97514b941d0681f6880f74c87bc85095f1da13aee8c0c017","f9ffa9ea79ba7fdf368e38a16c5df166235ae3d99d3fc7f80cb492969f3a8002"],"peft_config":{},"priority":0,"recipe":{},"semantic_type":"","sensitivity":"internal","sources":[],"ttl":null}');
INSERT INTO "versions" VALUES(5,2,41,'e1fbb338b1dcd7dd4e4d386212489da45becd389c9b4109556d430af3078a83c','11a7e527a740aa998ad4aff6e5277b6fac0072cfbfb8df8cf4c9012b3190b7ab',296,2,1,1,1769817667000000,'domain of short','bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb','','','','','internal','','','restore of the bank','{"base":"bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb","base_name":"","base_revision":"","created":"","domain":"domain of short","embedding":[],"half_life":null,"licence":"","made_by":"","metrics":{},"name":"short","origin":"","parents":[],"peft_config":{},"priority":0,"recipe":{},"semantic_type":"","sensitivity":"internal","sources":[],"ttl":60.0}');
CREATE INDEX ix_journal_at ON journal (at);
CREATE INDEX journal_of_action ON journal (action, seq);
CREATE INDEX journal_of_block ON journal (namespace, name, seq);
CREATE UNIQUE INDEX block_by_name ON blocks (namespace, name);
CREATE INDEX ix_versions_digest ON versions (digest);
CREATE INDEX ix_versions_domain ON versions (domain);
CREATE INDEX ix_versions_weights ON versions (weights);
CREATE INDEX ix_versions_base ON versions (base);
CREATE INDEX ix_parents_parent ON parents (parent);
CREATE INDEX versions_with_tag ON tags (tag, until, number);
CREATE INDEX tags_of_block ON tags (block, until);
CREATE INDEX answers_of_version ON shares (block, number, seq);
COMMIT;
